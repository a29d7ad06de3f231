"""This machine's side of a device: the link to it, and the work that goes over the link.

Read `transport` first (how a command gets to a device), then `link` (calls of the program there), `files`
(delivery by content digest), `images`, `jobs` (the work on one device), `measuring` (all devices of a call)
and `shipping`. `picks` and `text` only read results.
"""
