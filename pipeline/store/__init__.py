"""Artefacts: keys, manifests, digests, locks, cleaning, remotes.

Read `keys.py` first (what a key is), then `manifest.py` (what is stored beside the files), `store.py` (the
layout on disk, reading and publishing) and `locks.py`. `digests.py`, `disk.py` and `marker.py` are the parts
that `store.py` uses. `cleaning.py` and `remote.py` use the store from outside.
"""
