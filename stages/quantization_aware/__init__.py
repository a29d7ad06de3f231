"""Quantization-aware distillation: a short fine-tune of the student under the rounding of its INT8 file."""
