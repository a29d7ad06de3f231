"""Tests of `pipeline.running`."""
