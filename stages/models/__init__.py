"""Architectures, weights, and what is seen inside a network: maps, embeddings, logits."""
