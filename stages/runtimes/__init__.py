"""Runtimes: what builds and executes a target. One interface, one file a runtime."""
