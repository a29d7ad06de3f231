"""The program that runs on a device: Python's standard library, numpy and the runtimes installed there.

Read in this order: `agent` (one verb a call), `facts`, `files` and `releases` (the short verbs), `measuring`
(the process that measures, and its lock), `worker` (one target), `sessions` and `engines` (the target
loaded).
"""
