"""Architectures, weights, and the features of a forward pass: maps, embeddings, logits.

Read `settings`, `create` (a network by its name) with `stem` and `weights`, and `card` (a network on disk).
For features, read `features` and `observer`, then what the observer uses: `architecture`, `recording`,
`layout`, `activation`. `borrowed` is SimKD's student; `network_input` is the preprocessing of a network.
"""
