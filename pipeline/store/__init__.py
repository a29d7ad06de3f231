"""Artefacts: keys, manifests, digests, locks, cleaning, remotes."""
