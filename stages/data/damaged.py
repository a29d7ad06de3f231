"""One error for the many exceptions that file readers raise for damaged content."""

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
def reading_errors_as(error_for: Callable[[str], DataError]) -> Iterator[None]:
    """Convert what NumPy, SciPy, torchvision and similar readers raise for damaged files.

    Args:
        error_for: Builds the error from the reason.

    Raises:
        DataError: `error_for(why)`, where the block raised.
    """
    try:
        yield
    except _RAISED as error:
        raise error_for(f"{type(error).__name__}: {error}") from error


FETCH_AGAIN = "remove these files and fetch them again: kdpipe run PROFILE --set data.download=true"


def damaged_set(base: Path, why: str, hint: str = FETCH_AGAIN) -> DataError:
    """Return the error for a damaged torchvision set in the folder `base`."""
    return DataError("the data set is damaged", where=str(base), why=why, hint=hint)
