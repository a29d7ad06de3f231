"""From an ONNX file to ncnn's two files, by pnnx in a process of its own.

ncnn computes on one normalised image in floats; so the batch is fixed to one and the preprocessing is cut
off. The end of the preprocessing is found by its values, not by the names of its operators.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StageError
from pipeline.heartbeat import Hung, Silence, run_while_alive
from stages.runtimes.base import Source

if TYPE_CHECKING:
    import onnx

PARAM, WEIGHTS = "model.param", "model.bin"

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

CUT_TOLERANCE = 1e-4
"""Normalised pixels are a few units large: they are the same numbers, or differ far more than this."""


def network_without_preprocessing(source: Source) -> onnx.ModelProto:
    """Return the source's network without its preprocessing, constants folded.

    Returns:
        A graph from one normalised image, float32 (1, C, H, W), to `logits`.

    Raises:
        StageError: no value of the file is the normalised image.
    """
    import onnx

    model = _for_one_image(source)
    start = model.graph.input[0].name if source.input == "float32_nchw" else _normalised_value(model, source)
    network: onnx.ModelProto = onnx.utils.Extractor(model).extract_model([start], ["logits"])
    return network


def convert(
    model: onnx.ModelProto, source: Source, output: Path, work: Path, silence: Silence | None = None
) -> str:
    """Write `model.param` and `model.bin`.

    Args:
        model: see `network_without_preprocessing`.
        source: of the model.
        output: the folder that gets the files.
        work: a folder for temporary files.
        silence: how long pnnx may use no CPU time; how long it takes in all depends on the network.

    Returns:
        The operators that pnnx left unconverted, in a sentence; "" if there are none.

    Raises:
        StageError: pnnx fails, with its last lines of output, or hangs.
    """
    import onnx

    height, width, channels = source.image_shape
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        onnx.save(model, str(Path(folder, "model.onnx")))
        shape = f"inputshape=[1,{channels},{height},{width}]f32"
        command = [str(_pnnx()), "model.onnx", shape, f"fp16={int(source.precision == 'fp16')}"]
        try:
            done = run_while_alive(command, doing="converting", silence=silence, cwd=folder)
        except Hung as why:
            raise _failed(source, f"it hung: {why}") from None
        files = [Path(folder, f"model.ncnn.{end}") for end in ("param", "bin")]
        if done.returncode != 0 or not all(file.is_file() for file in files):
            last = "\n".join(done.stderr.strip().splitlines()[-5:]) or "it said nothing"
            raise _failed(source, f"status {done.returncode}: {last}")
        for file, name in zip(files, (PARAM, WEIGHTS), strict=True):
            shutil.copyfile(file, output / name)
    ignored = sorted(set(re.findall(r"^ignore (\S+) \S+ param", done.stderr, re.MULTILINE)))
    return f"ncnn has no layer for {', '.join(ignored)}" if ignored else ""


def count_layers(folder: Path) -> int:
    """Return how many layers a target has, from the second line of its `model.param`."""
    return int((folder / PARAM).read_text(encoding="ascii").splitlines()[1].split()[0])


def _for_one_image(source: Source) -> onnx.ModelProto:
    """Return the graph for a batch of one, constants folded by ONNX Runtime in standard operators."""
    import onnx
    import onnxruntime

    from stages.onnx_files.session_options import CPU, session_options

    model = onnx.load(str(source.onnx))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        options = session_options(optimization="basic", optimized_file=file)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        except Exception as error:  # the binding raises a class of its own for each status code
            raise StageError(
                "the file does not take a batch of one image",
                where=source.onnx.name,
                why=str(error),
                hint="export the model again: kdpipe export PROFILE",
            ) from error
        folded = onnx.shape_inference.infer_shapes(onnx.load(str(file)))
    _reshape_for_gather(folded)
    return folded


def _reshape_for_gather(model: onnx.ModelProto) -> None:
    """Write a gather of all elements in their order as a reshape.

    The exporter writes a flattening after a global pooling like this, and ncnn has no gather.
    """
    import onnx

    typed = {info.name: info for info in model.graph.value_info}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[1] not in constants:
            continue
        indices = onnx.numpy_helper.to_array(constants[node.input[1]])
        whole = np.array_equal(indices.reshape(-1), np.arange(indices.size))
        if whole and _shape(typed.get(node.input[0])) == (indices.size,):
            shape = onnx.numpy_helper.from_array(
                np.array(indices.shape, np.int64), f"{node.output[0]}__shape"
            )
            model.graph.initializer.append(shape)
            node.CopyFrom(
                onnx.helper.make_node(
                    "Reshape", [node.input[0], shape.name], [node.output[0]], name=node.name
                )
            )


def _normalised_value(model: onnx.ModelProto, source: Source) -> str:
    """Return the last value before the first layer with weights that is the normalised image."""
    import onnx

    from stages.onnx_files.sessions import open_session
    from stages.runtimes.images import as_input, natural_images

    height, width, channels = source.image_shape
    typed = {info.name: info for info in model.graph.value_info}
    before: list[str] = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        before += [name for name in node.output if _shape(typed.get(name)) == (1, channels, height, width)]
    images = natural_images(source.image_shape, 1)
    expected = as_input(images, replace(source, input="float32_nchw"))
    if before:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.extend(typed[name] for name in before)
        session = open_session(probe.SerializeToString())
        values = session.run(before, {model.graph.input[0].name: images})
        for name, value in reversed([*zip(before, values, strict=True)]):
            if np.abs(value - expected).max() < CUT_TOLERANCE:
                return str(name)
    raise StageError(
        "the preprocessing cannot be cut off this file",
        where=source.onnx.name,
        why="no value before the first layer with weights is the normalised image",
        hint="export the network without it: --set export.preprocessing=false",
    )


def _shape(info: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    """Return the shape of a float32 value; None for other types and unknown shapes."""
    if info is None or info.type.tensor_type.elem_type != 1:  # TensorProto.FLOAT
        return None
    return tuple(dimension.dim_value for dimension in info.type.tensor_type.shape.dim)


def _pnnx() -> Path:
    """Return the converter's program; its package is not imported, because that imports torch."""
    package = importlib.util.find_spec("pnnx")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("pnnx")


def _failed(source: Source, why: str) -> StageError:
    return StageError(
        "pnnx cannot convert this network for ncnn",
        where=source.onnx.name,
        why=why,
        hint="ncnn is made for convolutional networks: choose another student.model, or leave the ncnn "
        "targets out",
    )
