"""The settings of the export. Imports only pydantic."""

from __future__ import annotations

from stages.fields import Settings, setting


class ExportSettings(Settings):
    """Settings of the ONNX export."""

    opset: int = setting(20, "ONNX operator set", ge=18, le=23)
    preprocessing: bool = setting(
        True,
        "put scale, mean and std into the graph: uint8 NHWC images in, logits and probabilities out",
    )
    batch_max: int = setting(1024, "largest batch that the dynamic dimension declares", unit="images", ge=2)
    parity_images: int = setting(64, "real test images compared with PyTorch", unit="images", ge=8)
    tolerance: float = setting(
        1e-3,
        "largest logit difference from PyTorch, as a share of the logits' standard deviation",
        gt=0.0,
    )
    agreement: float = setting(
        95.0,
        "least share of the parity images with PyTorch's predicted class; one image may differ",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    prove: bool = setting(True, "false: a failed proof is only noted, and the files are written all the same")
