"""Percentiles, intervals and comparisons: numbers only, for everything that judges figures."""
