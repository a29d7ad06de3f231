"""Tests of `pipeline.cluster`."""
