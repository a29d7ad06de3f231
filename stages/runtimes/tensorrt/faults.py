"""TensorRT's messages when it builds nothing, as one error that a user can act on. Light.

The SDK hardly ever raises: its calls return None or False, and the reasons go to the logger and the parser's
list of errors.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from pipeline.errors import StageError

MOST_LINES, MOST_LETTERS = 4, 300
"""How much of the SDK's messages is shown; the first lines name the cause, later lines the consequences."""

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

MEMORY = ("out of memory", "outofmemory", "bad_alloc", "insufficient memory", "memoryerror")

LEAVE_OUT = "leave this target out"


def shortened(lines: Sequence[str]) -> str:
    """Return the first different lines, each on one line of bounded length."""
    different = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    shown = [
        line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…"
        for line in different[:MOST_LINES]
    ]
    more = len(different) - len(shown)
    return "\n".join([*shown, *([f"and {more} more"] if more else [])])


def refused(parser: Any, logged: Sequence[str]) -> StageError:
    """Return the error for a file that the parser refuses: a line for each node, with its operator.

    Args:
        parser: TensorRT's, after it has parsed.
        logged: the logger's lines of severity ERROR, for a parser that lists nothing.
    """
    lines, operators, unsupported = [], [], []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        description = " ".join(error.desc().split())
        operator, node = error.node_operator(), error.node_name()
        code = str(error.code()).rpartition(".")[2]
        if "plugin not found" in description.lower() or code == "UNSUPPORTED_NODE":
            description = f"operator {operator} unsupported"
            unsupported.append(operator)
        operators.append(operator)
        place = f" at node {node or '(unnamed)'} ({operator})" if operator else ""
        # The parser repeats code and node in front of the reason.
        reason = description.removeprefix(f"Invalid Node - {node}").strip() or description
        lines.append(f"{code}{place}: {reason}")
    if unsupported:
        hint = f"choose a student without such operators, or {LEAVE_OUT}"
    elif any(operator in QUANTIZERS for operator in operators):
        hint = (
            "TensorRT needs signed INT8, symmetric, zero points of 0 and biases in floats: the `signed` file "
            f"of kdpipe quantize; if it is that file, {LEAVE_OUT}"
        )
    else:
        hint = f"export again with another operator set (--set export.opset=20), or {LEAVE_OUT}"
    why = shortened(lines) or shortened(logged) or "it gave no reason"
    return StageError("TensorRT refuses the file", why=why, hint=hint)


def built_nothing(logged: Sequence[str]) -> StageError:
    """Return the error for a builder that gave no engine.

    Args:
        logged: its lines of severity ERROR.
    """
    why = shortened(logged) or "it gave no reason"
    return StageError("TensorRT built no engine", why=why, hint=_hint_for(why))


def raised(error: BaseException) -> StageError:
    """Return the error for an exception of the SDK's bindings or of the package's import."""
    if isinstance(error, ImportError):
        package = (error.name or "tensorrt").split(".")[0]
        extra = {"tensorrt_rtx": "rtx"}.get(package, "tensorrt")
        return StageError(
            f"the package {package} cannot be imported",
            why=str(error),
            hint=f"pip install 'kdpipe[{extra}]', or {LEAVE_OUT}",
        )
    why = f"{type(error).__name__}: {shortened([str(error)])}".rstrip(": ")
    return StageError("TensorRT's builder failed", why=why, hint=_hint_for(why))


def died(package: str, status: int, last_lines: Sequence[str]) -> StageError:
    """Return the error for a builder process that ended without an answer: it crashed or was ended.

    Args:
        package: that it built with.
        status: of the process; negative: the signal that ended it.
        last_lines: of its standard error.
    """
    output = shortened(last_lines) or "it wrote nothing to standard error"
    if status >= 0:
        how = f"status {status}"
    else:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        how = f"ended by {name}"
        if name == "SIGKILL":
            how += ", which the system sends when memory runs out"
    return StageError(
        f"{package} ended its process while building",
        why=f"{how}: {output}",
        hint=f"--set build.workspace_mb=256 or --set build.optimization_level=2 may help; else {LEAVE_OUT}",
    )


def _hint_for(why: str) -> str:
    if any(sign in why.lower() for sign in MEMORY):
        return (
            "free memory on the GPU and the machine, or ask for less: --set build.workspace_mb=256 "
            "--set build.batch_max=8"
        )
    return f"more scratch memory may help: --set build.workspace_mb=4096; else {LEAVE_OUT}"
