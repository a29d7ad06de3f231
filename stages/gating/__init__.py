"""Gates: limits on what was measured, judged with their intervals, and the target to ship under them."""
