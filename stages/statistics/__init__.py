"""Percentiles, intervals and comparisons of accuracies and latencies: numbers only.

Reading order: `intervals` (one accuracy, two on the same images), `crossed` (gains over seeds and images),
`percentiles` and `steadiness` (latencies), `paired` (the intervals that gates use).
"""
