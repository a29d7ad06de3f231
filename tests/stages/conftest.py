from __future__ import annotations

import pytest

from tests.processes import starts_processes
from tests.stages.line import Line, profile, stages_until


@pytest.fixture(scope="session")
@starts_processes
def measured_line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The tiny line up to and with measure; made once, read by many."""
    return Line(tmp_path_factory.mktemp("line"), profile()).run(*stages_until("measure"))


@pytest.fixture(scope="session")
def whole_line(measured_line: Line) -> Line:
    """The tiny line with its gates judged, its bundle and report."""
    return measured_line.run("gate", "package", "report")
