"""Compare methods: judge all runs together, and compute what each method gained."""
