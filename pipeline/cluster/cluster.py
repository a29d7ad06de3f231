"""Stages as tasks of a Ray cluster: `--on ray` (the running cluster, or one on this machine) and
`--on ray://HOST:PORT`.

Planning, keys, locks and publishing stay in this process, the driver; what goes to the cluster is
one stage's function with its folders, which driver and workers must see under the same paths. A stage
whose key names this machine (`Stage.machine`) runs in the driver, for elsewhere the key would lie.
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
from pipeline.cluster.folders import marker, wait_for
from pipeline.cluster.task import Job, There, make_task
from pipeline.errors import KdpipeError, MachineCannot, StageError, UsageError
from pipeline.running.plan import Profile
from pipeline.running.runner import in_process
from pipeline.stage import Context, Metrics, Progress, Stage

POLL_S = 0.2
CANCEL_WITHIN_S = 10.0

_GPU_DEVICE = re.compile(r"auto|cuda(:(?P<first>\d+))?")


class Cluster:
    """Where stages run. Connects when the first stage has to; `close` ends what was started.

    Raises UsageError for an address that is none, and where Ray is not installed.
    """

    def __init__(self, address: str, profile: Profile) -> None:
        if not re.fullmatch(r"ray(://[^/\s]+:\d+)?", address):
            raise UsageError(
                "--on names no cluster",
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
        """Runs a stage on the cluster and returns its metrics; its errors are raised as themselves.

        Raises UsageError if the cluster cannot be reached or used, MachineCannot if its workers
        do not see the store, StageError if it loses the task.
        """
        if stage.machine:
            context.progress.note(f"{stage.name} runs on this machine, which its key names")
            return in_process(stage, context)
        ray = self._connected()
        with exact_interrupts(), marker(context.work) as mark:
            job = Job(
                stage=stage,
                profile=self._profile,
                inputs=dict(context.inputs),
                output=context.output,
                work=context.work,
                history=context.history,
                mark=mark,
                cwd=Path.cwd(),
            )
            asked = resources(stage, self._profile, ray.nodes())
            options = {"max_retries": 0, "name": f"kdpipe {stage.name}", **asked}
            remote = ray.remote(**options)(make_task())
            reference = remote.remote(__version__, pickle.dumps(job), self._queue)
            try:
                while not ray.wait([reference], timeout=POLL_S)[0]:
                    self._relay(context.progress)
                word, *told = ray.get(reference)
                self._relay(context.progress)
            except BaseException as error:
                self._cancel(reference)
                if not isinstance(error, ray.exceptions.RayError):
                    raise
                raise StageError(
                    f"The cluster lost stage {stage.name}",
                    where=self.address,
                    why=_said(error),
                    hint="run again: it goes on from its last checkpoint; Ray's logs may tell more",
                ) from error
        if word == "done":
            metrics, files = told
            wait_for(stage.name, context.output, files)
            return dict(metrics)
        if word == "failed":
            raise pickle.loads(told[0]) from There(told[1])
        raise self._refusal(word, str(told[0]))

    def close(self) -> None:
        """Leaves the cluster; one that was started for this run ends with all its files."""
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
                    why=_said(error),
                    hint="check the address with `ray status`, or leave out --on",
                ) from error
        return self._ray

    def _refusal(self, word: str, told: str) -> KdpipeError:
        if word == "apart":
            return MachineCannot(
                "The cluster's workers do not see the store",
                where=self.address,
                why=told,
                hint="put the store into a folder that all machines share under one path: --store DIR",
            )
        why = f"found {told}" if word == "version" else told
        return UsageError(
            f"The cluster's workers do not have kdpipe {__version__}",
            where=self.address,
            why=why,
            hint=f"pip install kdpipe=={__version__} on every machine of the cluster",
        )

    def _relay(self, progress: Progress) -> None:
        for kind, *said in self._queue.get_nowait_batch(self._queue.qsize()):
            if kind == "note":
                progress.note(*said)
            else:
                *amounts, figures = said
                progress.update(*amounts, **figures)

    def _cancel(self, reference: Any) -> None:
        """Ends the task before its folder is taken away: first by an interrupt, then by force."""
        for force in (False, True):
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=force)
                if self._ray.wait([reference], timeout=CANCEL_WITHIN_S)[0]:
                    return


def resources(stage: Stage, profile: Profile, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a stage asks of Ray: a node's cores (or `compute.threads` of them), and the GPUs that the
    profile wants; never more than one node has, for then the task would wait for ever.

    Ray shows a task only the GPUs that it asked for, counted from 0. So `cuda:N` asks for the N before its
    own too; on nodes with fewer the stage refuses the device, as on a machine without it.

    nodes: as `ray.nodes()` tells them.
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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ").split("\n", 1)[0]
