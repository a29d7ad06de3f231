"""Stages as tasks of real Ray clusters: one that the run starts, and one that is there already."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.cluster import folders as cluster_folders
from pipeline.cluster.cluster import Cluster, resources
from pipeline.cluster.folders import marked, wait_for, why_not_shared
from pipeline.errors import Fault, GateMissed, KdpipeError, ProfileError, StageError, UsageError
from pipeline.profile.loading import load
from pipeline.running.runner import in_process, prepare_run, run, run_stages
from pipeline.stage import Context, Stage
from pipeline.store.store import Store
from stages import STAGES as REAL_STAGES
from tests.errors import raises
from tests.pipeline.command_line import PROFILE, SMALL, call, document, environment
from tests.pipeline.kitchen import STAGES, Notebook, small_profile
from tests.pipeline.smallhouse import STAGES as SMALL_STAGES

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
SAID = "a library says hello on standard output"


@pytest.mark.parametrize(
    "error", [GateMissed("a", where="b", why="c", hint="d"), ProfileError([Fault("a", "f", 1, 2)])]
)
def test_errors_can_be_sent(error: KdpipeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.as_json()) == (str(error), error.as_json())


@pytest.mark.parametrize("address", ["spark", "ray://", "ray://host", "rays", "ray://host:1 2"])
def test_an_address_that_is_none(home: Path, address: str) -> None:
    done = call(home, "run", PROFILE, "--on", address, program=SMALL)
    assert (done.returncode, done.stdout) == (2, "")
    assert repr(address) in done.stderr
    assert not (home / ".kdpipe").exists()


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray(home: Path) -> None:
    done = call(home, "run", PROFILE, "--on", "ray", program=SMALL)
    assert done.returncode == 2
    assert "pip install 'kdpipe[ray]'" in done.stderr


def test_a_marker_is_seen_on_the_same_file_system_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_folders, "SEEN_WITHIN_S", 0.0)
    with marked(tmp_path) as mark:
        assert why_not_shared(mark) == ""
        assert list(tmp_path.iterdir()) == []
        assert "No such file" in why_not_shared(mark)
        mark.path.write_text("of another machine")
        assert "another file" in why_not_shared(mark)
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one").write_text("1")
    wait_for("train", tmp_path, {"sub/one": 1})
    monkeypatch.setattr(cluster_folders, "VISIBLE_WITHIN_S", 0.0)
    with raises(StageError, why="two"):
        wait_for("train", tmp_path, {"sub/one": 1, "two": 1})


@needs_ray
def test_a_stage_whose_key_names_the_machine_runs_here(tmp_path: Path) -> None:
    profile = small_profile(tmp_path)
    cluster = Cluster("ray", profile)
    seen: list[Stage] = []

    def execute(stage: Stage, context: Context) -> dict[str, object]:
        seen.append(stage)
        return (cluster.execute if stage.machine else in_process)(stage, context)

    run(profile, Store(tmp_path / "store"), Notebook(), stages=STAGES, only="judge", execute=execute)
    assert [stage.name for stage in seen] == ["gather", "refine", "judge"]
    assert "ray" not in sys.modules
    cluster.close()


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_its_own(home: Path) -> None:
    scratch = home / "scratch"
    scratch.mkdir()
    variables = {"TMPDIR": str(scratch), "HOME": str(home)} if len(str(scratch)) < 50 else {"HOME": str(home)}
    first = call(home, "run", PROFILE, "--on", "ray", "--json", program=SMALL, **variables)
    assert first.returncode == 0, first.stderr
    assert [stage["status"] for stage in document(first)["stages"]] == ["ran"] * len(SMALL_STAGES)
    assert "trained in no time" in first.stderr
    assert SAID not in first.stderr  # it was said by a worker
    assert not (home / ".ray").exists()
    assert list(scratch.iterdir()) == []

    here = document(call(home, "run", PROFILE, "--json", "--store", "other", program=SMALL))
    digests = [[stage["digest"] for stage in answer["stages"]] for answer in (here, document(first))]
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """Start a cluster; yield its own address and the address for clients."""
    gcs, client = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(prefix="kdr", ignore_cleanup_errors=True) as folder:
        words = ["start", "--head", "--block", f"--port={gcs}", f"--ray-client-server-port={client}"]
        words += [
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--num-cpus=2",
            f"--temp-dir={folder}",
        ]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), *words],
            env=environment(RAY_AUTH_MODE="disabled"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for port in (gcs, client):
                _wait_for_port(port, process)
            yield f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}"
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        return int(free_socket.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "ray start has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the cluster did not come up")


@needs_ray
@pytest.mark.slow
class TestRunningCluster:
    @pytest.mark.parametrize(("fault", "kind"), [("crash", StageError), ("refuse late", UsageError)])
    def test_errors_come_back_as_themselves(
        self,
        tmp_path: Path,
        head: tuple[str, str],
        monkeypatch: pytest.MonkeyPatch,
        fault: str,
        kind: type[KdpipeError],
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", head[0])
        profile = small_profile(tmp_path, refine__fault=fault)
        store = Store(tmp_path / "store")
        with closing(Cluster("ray", profile)) as cluster:
            outcome = run_stages(
                prepare_run(profile, store, Notebook(), stages=STAGES, only="refine", execute=cluster.execute)
            )
        assert type(outcome.error) is kind
        assert [result.status for result in outcome.results] == ["ran", "failed"]
        if fault == "crash":
            assert "ZeroDivisionError: no such luck" in outcome.error.why
            [log] = (tmp_path / "store" / "logs").iterdir()
            assert "on the cluster:" in log.read_text()
            assert "refine.py" in log.read_text()
        else:
            assert outcome.error.what == "refine cannot do this after all"

    def test_as_a_client(self, home: Path, head: tuple[str, str]) -> None:
        pytest.importorskip("grpc", reason="ray[client] is not installed")
        done = call(home, "train", PROFILE, "--on", head[1], "--json", program=SMALL)
        assert done.returncode == 0, done.stderr
        assert document(done)["stages"][0]["status"] == "ran"
        assert "trained in no time" in done.stderr

    def test_a_cluster_that_is_not_there(self, home: Path) -> None:
        done = call(
            home, "train", PROFILE, "--on", "ray", program=SMALL, RAY_ADDRESS=f"127.0.0.1:{_free_port()}"
        )
        assert done.returncode == 2
        assert "The Ray cluster cannot be used" in done.stderr


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_task(home: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, *SMALL, "run", PROFILE, "--on", "ray", "--json"],
        cwd=home,
        env=environment(SMALL_TROUBLE="slow", HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoint = home / ".kdpipe" / "work"
    for _ in range(900):
        if any(checkpoint.glob("*/checkpoint")):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(1.0)
    # As a terminal does: to all processes of the group.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert json.loads(out)["stages"][0]["status"] == "failed"
    assert "Traceback" not in err
    assert list((home / ".kdpipe").glob("tmp/*")) == []
    assert len(list(checkpoint.glob("*/checkpoint"))) == 1


def test_gpus_and_cores_are_those_that_one_node_has(tmp_path: Path) -> None:
    profile = small_profile(tmp_path, compute={"device": "auto", "devices": 4, "threads": None})
    stage = Stage("train", "", "", 1, (), ("compute",))

    def requested(*nodes: dict[str, float], **compute: object) -> dict[str, float]:
        changed = profile.edited(compute={**profile.sections["compute"], **compute})
        return resources(stage, changed, [{"Alive": True, "Resources": node} for node in nodes])

    assert requested({"CPU": 8}, {"CPU": 4}) == {"num_cpus": 8, "num_gpus": 0}
    assert requested({"CPU": 8}, {"CPU": 4, "GPU": 2}) == {"num_cpus": 4, "num_gpus": 2}
    assert requested({"CPU": 16, "GPU": 4}, devices=1) == {"num_cpus": 4, "num_gpus": 1}
    assert requested({"CPU": 16, "GPU": 4}, device="cpu", threads=2) == {"num_cpus": 2, "num_gpus": 0}
    assert requested({}) == {"num_cpus": 1, "num_gpus": 0}


@pytest.mark.parametrize(
    ("device", "devices", "gpus"),
    [
        ("auto", 1, 1),
        ("cuda", 1, 1),
        ("cuda", 2, 2),
        ("cuda:0", 1, 1),
        ("cuda:0", 2, 2),
        ("cuda:1", 1, 2),
        ("cuda:1", 2, 3),
        ("cuda:9", 1, 4),
        ("cpu", 1, 0),
        ("mps", 1, 0),
    ],
)
def test_each_spelling_of_a_device_asks_for_its_gpus(
    home: Path, device: str, devices: int, gpus: int
) -> None:
    overrides = [f"compute.device={device}", f"compute.devices={devices}"]
    profile = load(home / PROFILE, overrides)
    [train] = [stage for stage in REAL_STAGES if stage.name == "train"]
    [node] = [{"Alive": True, "Resources": {"CPU": 8, "GPU": 4}}]
    assert resources(train, profile, [node])["num_gpus"] == gpus
    assert resources(train, profile, [{"Alive": True, "Resources": {"CPU": 8}}])["num_gpus"] == 0
