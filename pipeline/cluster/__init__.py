"""Stages as tasks of a Ray cluster."""
