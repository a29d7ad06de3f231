"""Tables as pandas data frames. pandas is imported only when a frame is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import pandas


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return a data frame with a row for each mapping.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            "A data frame needs pandas, which is not installed",
            why=str(error),
            hint="pip install pandas; without it, iterate over the rows",
        ) from error
    return pandas.DataFrame(list(rows))
