"""The work of the stage quantize: INT8 files are calibrated, improved, and compared with the float file.

Read in this order: `settings`, `reference` (images and float logits that all files are compared with),
`quantized_file` (one INT8 file and its accuracy), `calibration_sweep` (the choice of ranges), `sensitivity`
and `exclusion` (which layers stay in float), `reasons` (why), `proof` (the checks of a finished file).
"""
