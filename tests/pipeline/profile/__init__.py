"""Tests of `pipeline.profile`."""
