"""Building blocks that several distillation losses share; each takes plain arguments."""
