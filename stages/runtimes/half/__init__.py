"""ONNX files in half precision (fp16 and bf16).

Read `kinds` (the two types), `magnitudes` (how large weights and activations become), `node_types` (the type
of each node), `proof` (the comparison with the float graph), then `converting`, the entry point.
"""
