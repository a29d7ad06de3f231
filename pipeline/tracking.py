"""Log a run to MLflow (`--track URI`): the profile's settings, the metrics and the reports.

It is logged after the run, all at once, so that no server can slow a run down or stop it. Only this module
imports mlflow, and MLflow's own telemetry stays off.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.console.console import Console, guarded_output
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.running.key_facts import Profile
    from pipeline.running.run_state import StageResult

PARAMETER_CHARACTERS, KEY_CHARACTERS = 6000, 250
PARAMETERS_PER_CALL, METRICS_PER_CALL = 100, 1000
"""MLflow's limits (mlflow/utils/validation.py)."""

HISTORY_BYTES = 1 << 20
HISTORY_COLUMNS = ("val_top1", "val_loss", "train_loss")
ARTIFACTS = {"measure": ("scorecard.json",), "report": ("summary.json", "MODEL_CARD.md", "report.html")}

_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_DEFAULTS = {
    # Give up on an unreachable server after seconds; MLflow's own defaults take minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Newer releases refuse a plain folder without this; here the user chose it.
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


class Tracking:
    """Logs one run to MLflow. Construct it before the run, so that a missing package is an early error.

    Args:
        uri: The address of the MLflow server, database or folder.
        profile: The profile of the run.
        console: Receives the warning if logging fails.

    Raises:
        UsageError: A Python package is missing.
    """

    def __init__(self, uri: str, profile: Profile, console: Console) -> None:
        self.uri = uri
        self._profile = profile
        self._console = console
        self._began = _now_ms()
        _require("mlflow", "mlflow-skinny", "pip install 'kdpipe[tracking]'")
        if re.match(rf"({'|'.join(_DATABASES)})(\+\w+)?:", uri):
            _require("sqlalchemy", "mlflow with its databases", "pip install mlflow")

    def log_run(self, results: Sequence[StageResult], *, failed: bool = False) -> None:
        """Log the run to MLflow. Every failure becomes a warning: the run itself is over.

        Args:
            results: The results of the run's stages; without any, nothing is logged.
            failed: Whether the run ended in an error.
        """
        if not results:
            return
        try:
            with guarded_output():
                self._log_run(results, failed)
        except Exception as error:  # each of MLflow's stores has its own family of errors
            uri = _without_password(self.uri)
            reason = f"{type(error).__name__}: {error}".replace(self.uri, uri).split("\n", 1)[0]
            self._console.warn(f"tracking at {uri} failed; the run is unaffected ({reason[:300]})")

    def _log_run(self, results: Sequence[StageResult], failed: bool) -> None:
        os.environ.update(_ENVIRONMENT)
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=self.uri)
        run = client.create_run(
            _experiment(client, self._profile.name), start_time=self._began, run_name=self._profile.name
        ).info.run_id
        status = "FAILED"
        try:
            now = _now_ms()
            metrics = [Metric(name, value, now, step) for name, value, step in _metrics(results)]
            parameters = [Param(*each) for each in _parameters(self._profile.keyed)]
            client.log_batch(run, tags=[RunTag(*each) for each in _tags(results)])
            for start in range(0, len(parameters), PARAMETERS_PER_CALL):
                client.log_batch(run, params=parameters[start : start + PARAMETERS_PER_CALL])
            for start in range(0, len(metrics), METRICS_PER_CALL):
                client.log_batch(run, metrics=metrics[start : start + METRICS_PER_CALL])
            for result in results:
                for name in ARTIFACTS.get(result.name, ()):
                    if result.path and (result.path / name).is_file():
                        client.log_artifact(run, str(result.path / name))
            status = "FAILED" if failed else "FINISHED"
        finally:
            client.set_terminated(run, status)


def _experiment(client: Any, name: str) -> str:
    """Return the id of the experiment of that name; make it unless it exists."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except Exception:
            experiment = client.get_experiment_by_name(name)  # another run may just have made it
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _parameters(sections: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in _flat(sections):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield _key(name), text[:PARAMETER_CHARACTERS]


def _metrics(results: Sequence[StageResult]) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of the stages' metrics, their seconds, and the curves of the trainings."""
    for result in results:
        for name, value in _flat(result.metrics, result.name):
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                yield _key(name), float(value), 0
        if result.status == "ran":
            yield f"{result.name}.seconds", result.seconds, 0
        if result.path and result.name in ("train", "distill"):
            yield from _history(result)


def _history(result: StageResult) -> Iterator[tuple[str, float, int]]:
    file = result.path / "history.csv" if result.path else None
    if file is None or not file.is_file() or file.stat().st_size > HISTORY_BYTES:
        return
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for column in HISTORY_COLUMNS:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    value = float(row[column])
                    if math.isfinite(value):
                        yield f"{result.name}.history.{column}", value, int(row["epoch"])


def _tags(results: Sequence[StageResult]) -> Iterator[tuple[str, str]]:
    yield "kdpipe.version", __version__
    for result in results:
        yield f"kdpipe.status.{result.name}", result.status
        if result.digest:
            yield f"kdpipe.digest.{result.name}", result.digest


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names; a list is a leaf."""
    if isinstance(value, Mapping) and (value or not name):
        for key, entry in value.items():
            yield from _flat(entry, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _key(name: str) -> str:
    """Return the name with only the characters that MLflow allows on every system."""
    return re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)[:KEY_CHARACTERS]


def _require(module: str, package: str, hint: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"--track needs the Python package {package}", why="it is not installed", hint=hint)


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _now_ms() -> int:
    return int(time.time() * 1000)
