"""The training step and the loop around it, shared by train and distill."""
