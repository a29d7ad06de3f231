"""OpenVINO on the CPU. Light until something is built or loaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MachineCannot, StageError
from pipeline.machine import installed_versions
from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.openvino.package import import_openvino
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    from stages.runtimes.openvino.session import OpenVinoSession

FILE = "model.xml"
INSTALL = "pip install 'kdpipe[openvino]'"


class OpenVino:
    """Builds and runs targets `openvino-fp32`, `openvino-bf16` and `openvino-int8`."""

    name = "openvino"
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8")
    not_offered = {  # noqa: RUF012 - never changed
        "fp16": "OpenVINO computes fp16 on few CPUs and otherwise takes another type without saying so"
    }
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["openvino"]

    def ability_to_build(self) -> Ability:
        """Return whether the package can be imported."""
        if importlib.util.find_spec("openvino") is None:
            return Ability(False, "the openvino package is not installed", INSTALL)
        try:
            import_openvino()
        except (ImportError, OSError) as error:
            return Ability(False, f"the openvino package cannot be imported: {error}", INSTALL)
        return Ability(True, versions=installed_versions(self.distributions))

    def ability_to_run(self) -> Ability:
        """Return the same as for building."""
        return self.ability_to_build()

    def build(
        self,
        source: Source,
        output: Path,
        settings: BuildSettings,  # noqa: ARG002 - the interface passes it
        progress: Progress,  # noqa: ARG002 - the interface passes it
        work: Path,  # noqa: ARG002 - the interface passes it
    ) -> dict[str, Any]:
        """Write `model.xml` and `model.bin`, weights as exact as in the source.

        For bf16 too: weights and activations become bf16 when the file is loaded, because every session
        asks for that.

        Raises:
            StageError: OpenVINO refuses the file.
            MachineCannot: the target is bf16 and the processor does not compute it.
        """
        openvino = import_openvino()
        if source.precision == "bf16":
            require_bf16(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        try:
            model = openvino.Core().read_model(str(source.onnx))
        except RuntimeError as error:
            raise StageError(
                "OpenVINO refuses the file",
                where=source.onnx.name,
                why=str(error).replace(str(source.onnx), source.onnx.name),
                hint="export again with another operator set: --set export.opset=20",
            ) from error
        model.set_friendly_name("model")
        if source.precision == "int8":
            _select_by_slice(model)
        _name_by_position(model)
        openvino.save_model(model, str(output / FILE), compress_to_fp16=False)
        return {
            "operators": len(model.get_ops()),
            "weights": "as in the source"
            + ("; rounded to bf16 when the file is loaded" if source.precision == "bf16" else ""),
            "portable": "any CPU, this or a later OpenVINO",
        }

    def load(self, folder: Path, source: Source, threads: int) -> OpenVinoSession:
        """Load `model.xml` with `threads` threads."""
        from stages.runtimes.openvino.session import OpenVinoSession

        return OpenVinoSession(folder / FILE, source, threads)


def require_bf16(capabilities: Sequence[str]) -> None:
    """Raise MachineCannot unless the processor's capabilities, in OpenVINO's words, have bfloat16."""
    if "BF16" not in capabilities:
        raise MachineCannot(
            "this processor does not compute bfloat16",
            why=f"OpenVINO lists {', '.join(capabilities)} and would run the target in fp32",
            hint="build on a processor with AVX512-BF16, AMX or Arm's BF16, or take openvino-fp32",
        )


def _select_by_slice(model: Any) -> None:
    """Write `x[:, 0]` (a vision transformer's class token) as a slice in place of a gather.

    OpenVINO's INT8 pass takes the scale of a layer norm before it for a dequantization and fails
    to carry that over a gather of a single index; over a slice it can.
    """
    import numpy as np
    from openvino import opset13 as operators

    for gather in model.get_ordered_ops():
        if gather.get_type_name() != "Gather" or not gather.get_output_element_type(0).is_real():
            continue
        index, axis = (gather.input_value(position).get_node() for position in (1, 2))
        if index.get_type_name() != "Constant" or axis.get_type_name() != "Constant" or index.shape:
            continue
        start, axes = int(index.data), np.array([int(axis.data)])
        end = start + 1 if start != -1 else np.iinfo(np.int64).max
        data, step = gather.input_value(0), np.array([1])
        piece = operators.slice(data, np.array([start]), np.array([end]), step, axes)
        squeezed = operators.squeeze(piece, axes)
        squeezed.set_friendly_name(gather.get_friendly_name())
        gather.output(0).replace(squeezed.output(0))
    model.validate_nodes_and_infer_types()


def _name_by_position(model: Any) -> None:
    """Name unnamed operators by their position.

    OpenVINO numbers them in the order in which the process creates them; equal work has to give equal files.
    """
    for position, operator in enumerate(model.get_ordered_ops()):
        kind = operator.get_type_name()
        if re.fullmatch(rf"{re.escape(kind)}_\d+", operator.get_friendly_name()):
            operator.set_friendly_name(f"{kind}_{position}")


RUNTIME = OpenVino()
