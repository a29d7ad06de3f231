"""The data sets that torchvision can read or download."""
