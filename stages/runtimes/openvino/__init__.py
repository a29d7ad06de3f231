"""The runtime OpenVINO."""
