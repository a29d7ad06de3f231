"""Data sets: labelled images, read once, stored as uint8, split without leakage.

Read `settings` (what a profile can set), `raw` (a set as its reader returns it), one reader (`digits`, `idx`,
`npz`, `image_folder`, `torchvision/`), then `load` (splits and a common image format) and `batching`.
`fingerprint` computes a set's identity for the store; `registry` finds third-party sets.
"""
