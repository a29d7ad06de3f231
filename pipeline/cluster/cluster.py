"""Run stages as tasks of a Ray cluster: `--on ray` or `--on ray://HOST:PORT`.

`ray` is the running cluster, or a new one on this machine. Planning, keys, locks and publishing stay in this
process, the driver. The cluster runs only a stage's function; driver and workers must see its folders under
the same paths. A stage whose key contains this machine (`Stage.machine`) runs in the driver: elsewhere the
key would be wrong.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cluster.connection import connect, exact_interrupts
from pipeline.cluster.folders import marked, wait_for
from pipeline.cluster.task import ClusterTraceback, StageTask, make_task
from pipeline.errors import KdpipeError, MachineCannot, StageError, UsageError
from pipeline.running.key_facts import Profile
from pipeline.running.runner import in_process
from pipeline.stage import Context, Metrics, Progress, Stage

POLL_S = 0.2
CANCEL_WITHIN_S = 10.0

_GPU_DEVICE = re.compile(r"auto|cuda(:(?P<first>\d+))?")


class Cluster:
    """A Ray cluster that runs stages. The first stage connects to it; `close` ends what was started.

    Args:
        address: `ray` or `ray://HOST:PORT`.
        profile: The profile of the run.

    Raises:
        UsageError: The address is invalid, or Ray is not installed.
    """

    def __init__(self, address: str, profile: Profile) -> None:
        if not re.fullmatch(r"ray(://[^/\s]+:\d+)?", address):
            raise UsageError(
                "--on needs the address of a cluster",
                why=f"found {address!r}, expected ray or ray://HOST:PORT",
                hint="--on ray",
            )
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "--on needs the Python package ray",
                why="it is not installed",
                hint="pip install 'kdpipe[ray]'",
            )
        self.address = address
        self._profile = profile
        self._ray: Any = None
        self._queue: Any = None
        self._folder: str | None = None

    def execute(self, stage: Stage, context: Context) -> Metrics:
        """Run a stage on the cluster and return its metrics.

        Raises:
            UsageError: The cluster cannot be reached or used.
            MachineCannot: Its workers do not see the store.
            StageError: The cluster lost the task.
            Exception: The stage raised it; it has the same class as on the worker.
        """
        if stage.machine:
            context.progress.note(f"{stage.name} runs on this machine, because its key contains the machine")
            return in_process(stage, context)
        ray = self._connected()
        with exact_interrupts(), marked(context.work) as mark:
            task = StageTask(
                stage=stage,
                profile=self._profile,
                inputs=dict(context.inputs),
                output=context.output,
                work=context.work,
                history=context.history,
                mark=mark,
                cwd=Path.cwd(),
            )
            request = resources(stage, self._profile, ray.nodes())
            options = {"max_retries": 0, "name": f"kdpipe {stage.name}", **request}
            remote = ray.remote(**options)(make_task())
            reference = remote.remote(__version__, pickle.dumps(task), self._queue)
            try:
                while not ray.wait([reference], timeout=POLL_S)[0]:
                    self._relay(context.progress)
                kind, *values = ray.get(reference)
                self._relay(context.progress)
            except BaseException as error:
                self._cancel(reference)
                if not isinstance(error, ray.exceptions.RayError):
                    raise
                raise StageError(
                    f"The cluster lost stage {stage.name}",
                    where=self.address,
                    why=_summary(error),
                    hint="run again to resume from the last checkpoint; Ray's logs may have the cause",
                ) from error
        if kind == "done":
            metrics, files = values
            wait_for(stage.name, context.output, files)
            return dict(metrics)
        if kind == "failed":
            error_bytes, traceback_text = values
            raise pickle.loads(error_bytes) from ClusterTraceback(traceback_text)  # noqa: S301 - our worker
        raise self._refusal(kind, str(values[0]))

    def close(self) -> None:
        """Leave the cluster; end one that was started for this run, and delete all its files."""
        if self._ray is not None:
            with contextlib.suppress(Exception):
                self._queue.shutdown(force=True)
            self._ray.shutdown()
            self._ray = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connected(self) -> Any:
        if self._ray is None:
            try:
                self._ray, self._folder = connect(self.address)
                self._queue = self._ray.util.queue.Queue(actor_options={"num_cpus": 0})
            except Exception as error:
                raise UsageError(
                    "The Ray cluster cannot be used",
                    where=self.address,
                    why=_summary(error),
                    hint="check the address with `ray status`, or leave out --on",
                ) from error
        return self._ray

    def _refusal(self, kind: str, text: str) -> KdpipeError:
        if kind == "apart":
            return MachineCannot(
                "The cluster's workers do not see the store",
                where=self.address,
                why=text,
                hint="put the store into a folder that all machines share under one path: --store DIR",
            )
        why = f"found {text}" if kind == "version" else text
        return UsageError(
            f"The cluster's workers do not have kdpipe {__version__}",
            where=self.address,
            why=why,
            hint=f"pip install kdpipe=={__version__} on every machine of the cluster",
        )

    def _relay(self, progress: Progress) -> None:
        for kind, *values in self._queue.get_nowait_batch(self._queue.qsize()):
            if kind == "note":
                progress.note(*values)
            else:
                *amounts, figures = values
                progress.update(*amounts, **figures)

    def _cancel(self, reference: Any) -> None:
        """End the task before its folder is deleted: first by an interrupt, then by force."""
        for force in (False, True):
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=force)
                if self._ray.wait([reference], timeout=CANCEL_WITHIN_S)[0]:
                    return


def resources(stage: Stage, profile: Profile, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the resources that a stage requests from Ray.

    They are a node's cores (or `compute.threads` of them), and the GPUs in the profile; never more than one
    node has, because then the task would wait for ever. Ray shows a task only the GPUs that it requested,
    counted from 0. So `cuda:N` requests the N before its own too; on nodes with fewer the stage refuses the
    device, the way it does on a machine without it.

    Args:
        stage: The stage to run.
        profile: The profile of the run.
        nodes: The nodes, from `ray.nodes()`.

    Returns:
        `num_cpus` and `num_gpus`, the options of a Ray task.
    """
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    computes = "compute" in stage.reads
    gpus = 0
    if computes and (on_gpu := _GPU_DEVICE.fullmatch(profile.value("compute.device"))):
        most = int(max((offer.get("GPU", 0) for offer in offers), default=0))
        gpus = min(int(on_gpu["first"] or 0) + profile.value("compute.devices"), most)
    able = [offer for offer in offers if offer.get("GPU", 0) >= gpus]
    best: Mapping[str, float] = max(able, key=lambda offer: offer.get("CPU", 0), default={})
    cores = best.get("CPU", 1)
    if gpus:
        cores = cores * gpus // best["GPU"]
    threads = profile.value("compute.threads") if computes else None
    return {"num_cpus": max(1, min(cores, threads or cores)), "num_gpus": gpus}


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ").split("\n", 1)[0]
