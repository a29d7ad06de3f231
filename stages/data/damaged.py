"""What the readers of files raise for damaged content, told as one error."""

from __future__ import annotations

import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DataError

_RAISED = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
)


@contextmanager
def reading(fault: Callable[[str], DataError]) -> Iterator[None]:
    """Turns whatever NumPy, SciPy, torchvision and the like raise for damaged files into `fault(why)`."""
    try:
        yield
    except _RAISED as error:
        raise fault(f"{type(error).__name__}: {error}") from error


FETCH_AGAIN = "remove these files and let them be fetched again: kdpipe run PROFILE --set data.download=true"


def damaged_set(base: Path, why: str, hint: str = FETCH_AGAIN) -> DataError:
    """The error for a damaged set of torchvision's."""
    return DataError("the data set is damaged", where=str(base), why=why, hint=hint)
