"""ONNX files: exporting them from PyTorch, proving them, quantizing them and reading their contents.

Reading order:

* format and running: `metadata`, `sessions`, `graphs`, `node_names`, `settings`, `quiet`
* export: `exporting`, `tidying`, `graph_proof`, `parity`
* quantization: `calibration`, `histograms`, `ranges`, `quantizing`
* checks of INT8 files: `quantized_proof`, `lint`, `float_layers`, `macs`
"""
