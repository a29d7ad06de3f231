"""Tests of `pipeline.store`."""
