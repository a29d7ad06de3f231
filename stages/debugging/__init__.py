"""Find the first layer at which a conversion goes wrong.

Entry points: `line` (every conversion of a profile) and `pair` (two ONNX files). Then read `bisecting`
(compares the layers), `pairing` (which values correspond), `torch_layers` and `openvino_layers` (values that
ONNX Runtime does not compute), `minimal_model` and `step_report` (the results).
"""
