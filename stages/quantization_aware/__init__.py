"""Quantization-aware distillation: a short fine-tune of the student under the rounding of its INT8 file.

Read in this order: `recovery` (when a file is fine-tuned, and whether the result is used), `fine_tune` (the
training), `rounded_file` (what an INT8 file rounds), `folding` (normalisations into convolutions),
`rounding_places` (which modules the roundings belong to), `rounding` (rounding with a gradient), `simulation`
(a network with the roundings), `condition` (whether a profile can lead to a fine-tune).
"""
