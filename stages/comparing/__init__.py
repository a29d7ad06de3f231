"""Comparing methods: judging all runs at once, what they gained, and the page that shows it."""
