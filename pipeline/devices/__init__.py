"""This side of a device: link, transport, files, jobs, shipping."""
