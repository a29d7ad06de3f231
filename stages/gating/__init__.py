"""Gates: judge the profile's limits with their intervals, and choose the target to ship."""
