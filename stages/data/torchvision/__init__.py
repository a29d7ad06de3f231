"""The data sets that torchvision can read or download.

Read `table` (each set's files), `files` (their paths on disk), `sets` (the entry point, and the sets of
arrays), then `images` (the sets of image files) and `download`.
"""
