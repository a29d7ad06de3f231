"""Stages as tasks of a Ray cluster (`--on ray`).

Read `cluster.py` first (the driver), then `task.py` (the worker). `connection.py` connects to a cluster or
starts one; `folders.py` checks that driver and worker see the same files.
"""
