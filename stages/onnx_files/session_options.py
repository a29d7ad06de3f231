"""The options of ONNX Runtime's sessions; no other module of the stages writes them.

Light: it needs ONNX Runtime only, because the program that works on devices carries it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnxruntime

from pipeline.machine import usable_cores

CPU = "CPUExecutionProvider"

Optimization = Literal["none", "basic", "extended", "all"]

LEVELS: dict[Optimization, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

WARNINGS, ERRORS = 2, 3
"""Severities of ONNX Runtime's log: the lowest one that is written."""


def session_options(
    *,
    threads: int | None = None,
    optimization: Optimization = "all",
    optimized_file: Path | None = None,
    severity: int = ERRORS,
) -> onnxruntime.SessionOptions:
    """Return the options of a session that runs one inference at a time.

    Args:
        threads: threads of one inference; None: as many as this process may use at once, by its affinity and
            its CPU quota. ONNX Runtime itself would take every core of the machine.
        optimization: how far the graph is rewritten before it runs; "none" runs it node by node.
        optimized_file: where the rewritten graph is saved; None: nowhere.
        severity: `WARNINGS` or `ERRORS`.

    Example:
        >>> session_options(threads=2).intra_op_num_threads
        2
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[optimization])
    options.log_severity_level = severity
    if optimized_file is not None:
        options.optimized_model_filepath = str(optimized_file)
    spins = "1" if may_spin(options.intra_op_num_threads) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    return options


def may_spin(threads: int) -> bool:
    """Return whether waiting threads may spin: with more threads than cores they take the cores from work."""
    return threads <= usable_cores()
