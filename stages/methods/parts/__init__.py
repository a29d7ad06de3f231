"""Building blocks that several distillation methods share."""
