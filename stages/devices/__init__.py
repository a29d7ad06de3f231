"""A user's own devices: their settings, what is sent to them, and the program that runs there.

Read in this order: `settings` (the profile's section), `program` (which modules the device gets), `requests`
(what it is asked to measure), `there/agent` (the program's entry), `there/worker` (one target measured), and,
back on this machine, `abilities`, `accuracy` and `sample_files`.
"""
