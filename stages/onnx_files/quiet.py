"""Keep the output of libraries off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, warnings and log lines of the exporter and the quantizer.

    Has no effect when the logger `kdpipe` is at DEBUG: they are part of a detailed log. The root logger is
    silenced too, since the quantizer warns through it.
    """
    if logging.getLogger("kdpipe").isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    reject = _RejectAll()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        for handler in root.handlers:
            handler.addFilter(reject)
        if not root.handlers:
            root.addHandler(logging.NullHandler())
        try:
            yield
        finally:
            for handler in root.handlers:
                handler.removeFilter(reject)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _RejectAll(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the interface passes it
        """Reject every record."""
        return False
