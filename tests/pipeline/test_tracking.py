"""Runs in MLflow's books: real runs of the small stages, read back by MLflow's own client."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__
from tests.pipeline.command_line import PROFILE, SMALL, call, document

HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None
needs_mlflow = pytest.mark.skipif(not HAS_MLFLOW, reason="mlflow-skinny is not installed")
NOWHERE = "http://me:secret@127.0.0.1:9"


@pytest.fixture
def books(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return home / "books"


def runs(books: Path, experiment: str = "small") -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=books.as_uri())
    logged_experiment = client.get_experiment_by_name(experiment)
    assert logged_experiment is not None
    return client, list(client.search_runs([logged_experiment.experiment_id]))


@needs_mlflow
def test_a_run_is_reported_whole(home: Path, books: Path) -> None:
    done = call(home, "run", PROFILE, "--set", "train.epochs=3", "--track", "books", "--json", program=SMALL)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    stages = {stage["name"]: stage for stage in document(done)["stages"]}
    client, [run] = runs(books)
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["teacher.model"] == "resnet18"
    assert run.data.params["name"] == "small"
    assert run.data.metrics["train.val_top1"] == 98.5
    assert run.data.metrics["evaluate.student_top1"] == 97.41
    assert "measure.fastest" not in run.data.metrics  # a word
    assert math.isclose(run.data.metrics["train.seconds"], stages["train"]["seconds"])
    assert run.data.tags["kdpipe.version"] == __version__
    assert run.data.tags["kdpipe.status.train"] == "ran"
    assert run.data.tags["kdpipe.digest.report"] == stages["report"]["digest"]
    curve = client.get_metric_history(run.info.run_id, "train.history.val_top1")
    assert [(point.step, point.value) for point in curve] == [(1, 91.5), (2, 98.5)]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"scorecard.json", "summary.json", "MODEL_CARD.md", "report.html"}

    again = call(
        home, "run", PROFILE, "--set", "train.epochs=3", program=SMALL, KDPIPE_TRACKING_URI=str(books)
    )
    assert again.returncode == 0
    client, logged = runs(books)
    assert [run.data.tags["kdpipe.status.train"] for run in logged] == ["hit", "ran"]


@needs_mlflow
def test_a_failed_run_is_reported_as_failed(home: Path, books: Path) -> None:
    done = call(home, "run", PROFILE, "--track", str(books), program=SMALL, SMALL_TROUBLE="gate")
    assert done.returncode == 3
    _, [run] = runs(books)
    assert run.info.status == "FAILED"
    assert run.data.tags["kdpipe.status.train"] == "failed"
    assert run.data.tags["kdpipe.status.report"] == "skipped"


@needs_mlflow
def test_long_and_odd_values_are_cut_to_size(home: Path, books: Path) -> None:
    targets = json.dumps(["onnxruntime-fp32"])
    done = call(home, "run", PROFILE, "--set", f"targets={targets}", "--track", str(books), program=SMALL)
    assert done.returncode == 0, done.stderr
    _, [run] = runs(books)
    assert json.loads(run.data.params["targets"])[0]["name"] == "onnxruntime-fp32"


@needs_mlflow
@pytest.mark.parametrize(("trouble", "code"), [("", 0), ("gate", 3)])
def test_a_server_that_is_away_changes_nothing(home: Path, trouble: str, code: int) -> None:
    done = call(
        home,
        *("run", PROFILE, "--json", "--track", NOWHERE),
        program=SMALL,
        SMALL_TROUBLE=trouble,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert done.returncode == code
    assert len(document(done)["stages"]) == 5
    [warning] = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert "127.0.0.1:9" in warning
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(HAS_MLFLOW, reason="mlflow-skinny is installed")
def test_without_mlflow(home: Path) -> None:
    done = call(home, "run", PROFILE, "--track", "books", program=SMALL)
    assert done.returncode == 2
    assert "pip install 'kdpipe[tracking]'" in done.stderr
    assert not (home / ".kdpipe").exists()


@needs_mlflow
@pytest.mark.skipif(importlib.util.find_spec("sqlalchemy") is not None, reason="sqlalchemy is installed")
def test_a_database_needs_the_whole_of_mlflow(home: Path) -> None:
    done = call(home, "run", PROFILE, "--track", "sqlite:///books.db", program=SMALL)
    assert done.returncode == 2
    assert "pip install mlflow" in done.stderr
    assert not (home / ".kdpipe").exists()
