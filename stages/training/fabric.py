"""Where and how a network is computed: device, precision, threads, determinism, several processes.

Lightning Fabric provides the device, the precision and DDP, so the loop does not depend on them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from pipeline import machine
from pipeline.child_process import safe_path
from pipeline.errors import EXIT_INTERRUPTED, KdpipeError, MachineCannot, StageError, UsageError
from pipeline.stage import Context, Metrics, Silent
from stages.training import pipes
from stages.training.settings import ComputeSettings

Work = Callable[[Fabric, Context], Metrics]
"""What `launch` runs, once in each process. A module's function, because a process has to import it."""

_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Compute:
    """Device, precision and threads of a run on this machine; nothing is `auto` any more.

    Attributes:
        kind: cpu, cuda or mps.
        index: Index of the first device.
        devices: Number of processes, each with its device.
        precision: fp32, bf16 or fp16 (the last two mixed: weights stay float32).
        threads: CPU threads of each process.
        channels_last: Whether images and weights are in NHWC order in memory.
        compile: Whether the training step is compiled with torch.compile.
    """

    kind: str
    index: int
    devices: int
    precision: str
    threads: int
    channels_last: bool
    compile: bool

    @property
    def device(self) -> torch.device:
        """The first device."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, self.index)


def resolve(settings: ComputeSettings) -> Compute:
    """Return what the profile's section `compute` means on this machine.

    Raises:
        MachineCannot: This machine lacks the device.
        UsageError: The device does not have the precision.
    """
    kind, _, index = settings.device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    first = int(index or 0)
    available = {
        "cpu": machine.installed_cores(),
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if first + settings.devices > available:
        missing = f"{kind}:{first}" if settings.devices == 1 else f"{settings.devices} {kind} devices"
        raise MachineCannot(
            f"compute.device is {missing}, which this machine does not have",
            where="compute.device, compute.devices",
            why=f"PyTorch {torch.__version__} finds {available} {kind} device{'s' if available != 1 else ''}",
            hint="--set compute.device=auto --set compute.devices=1",
        )
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if takes_bf16(kind, first) else "fp32"
    if precision == "fp16" and kind != "cuda":
        raise UsageError(
            f"Precision fp16 needs a CUDA device, and this run is on {kind}",
            where="compute.precision",
            why="mixed precision on a CPU is bf16",
            hint="--set compute.precision=auto",
        )
    threads = settings.threads or machine.usable_cores()
    return Compute(
        kind=kind,
        index=first,
        devices=settings.devices,
        precision=precision,
        threads=max(1, threads // settings.devices) if kind == "cpu" else threads,
        channels_last=settings.channels_last,
        compile=settings.compile,
    )


def takes_bf16(kind: str, index: int = 0) -> bool:
    """Return whether precision `auto` is bfloat16: on a GPU that multiplies it in hardware.

    CPUs with such hardware use it only if the profile sets it: with two threads on a busy machine, sound
    trainings became NaN there now and then (PyTorch 2.15, AMX).
    """
    return kind == "cuda" and torch.cuda.get_device_capability(index)[0] >= 8


def make(compute: Compute, *, precision: str | None = None) -> Fabric:
    """Return a Fabric on this device.

    Args:
        compute: Device and precision.
        precision: Replaces the precision of `compute` (evaluation is always float32).
    """
    # Fabric logs at INFO level what kdpipe reports itself.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # PyTorch warns of every process that it ends because another one failed.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    several = compute.devices > 1
    if compute.kind == "cpu":
        devices: Any = compute.devices
    else:
        devices = list(range(compute.index, compute.index + compute.devices))
    return Fabric(
        accelerator=compute.kind,
        devices=devices,
        # Explicit, so that a batch system's variables in the environment change nothing.
        plugins=[LightningEnvironment()],
        strategy=_ddp_strategy() if several else "auto",
        precision=_FABRIC_PRECISION[precision or compute.precision],
    )


def _ddp_strategy() -> DDPStrategy:
    return DDPStrategy(
        start_method="spawn",
        # Some networks hold parameters that a step does not use (a norm before a pooling left out).
        find_unused_parameters=True,
        # Running statistics of the result are the first process's; memory banks are equal in all.
        **{_buffer_sync_option(): False},
    )


def _buffer_sync_option() -> str:
    """Return DDP's option that copies the first process's buffers to the others before every step."""
    known = inspect.signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"


@contextlib.contextmanager
def reproducible(compute: Compute, seed: int, *, true_fp32: bool = False) -> Iterator[None]:
    """Seed and pin all that changes a result, and restore it afterwards.

    On the CPU an operation without a deterministic form is an error, on a GPU a warning.

    Args:
        compute: Device and threads.
        seed: Seed of PyTorch's generators.
        true_fp32: Whether TF32 is off on the GPU, for figures that are compared with another runtime's.
    """
    cudnn = torch.backends.cudnn
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        cudnn.benchmark,
    )
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    cuda = compute.kind == "cuda"
    tf32 = (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32) if cuda else None
    forked = list(range(compute.index, compute.index + compute.devices)) if cuda else []
    with torch.random.fork_rng(devices=forked, enabled=True):
        try:
            if cublas is None:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            torch.set_num_threads(compute.threads)
            torch.use_deterministic_algorithms(True, warn_only=compute.kind != "cpu")
            # It would write every new tensor once more, for code that reads what it never wrote.
            deterministic.fill_uninitialized_memory = False
            cudnn.benchmark = False
            if cuda:
                torch.backends.cuda.matmul.allow_tf32 = not true_fp32
                cudnn.allow_tf32 = not true_fp32
            torch.manual_seed(seed)
            yield
        finally:
            threads, was_deterministic, warn_only, fill, benchmark = before
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warn_only)
            deterministic.fill_uninitialized_memory = fill
            cudnn.benchmark = benchmark
            if tf32 is not None:
                torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32 = tf32
            if cublas is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def launch(work: Work, context: Context) -> Metrics:
    """Run `work(fabric, context)` reproducibly: here for one device, otherwise in a process for each device.

    Args:
        work: The function.
        context: The stage's context; its settings have `compute` and `seed`. Progress of the first process
            is reported to it.

    Returns:
        The first process's metrics.

    Raises:
        KdpipeError: A process raised it; of several errors, that of the lowest rank.
        StageError: A process failed otherwise.
    """
    compute = resolve(context.settings.compute)
    if compute.devices == 1:
        with reproducible(compute, context.settings.seed):
            return work(make(compute), context)
    return _launch_several(compute, work, context)


def _launch_several(compute: Compute, work: Work, context: Context) -> Metrics:
    receiver = pipes.Receiver(compute.devices, context.progress)
    others = replace(
        context,
        settings=_portable(context.settings),
        inputs=dict(context.inputs),
        progress=Silent(),
    )
    # Bound here: Fabric searches a call's arguments for modules and refuses frozen classes.
    bound = functools.partial(
        _in_process, compute=compute, work=work, context=others, writers=receiver.writers
    )
    running = set(multiprocessing.active_children())
    port = os.environ.get("MASTER_PORT")
    metrics: Metrics = {}
    failure: Exception | None = None
    try:
        with safe_path():
            metrics = make(compute).launch(bound)
    except Exception as error:
        failure = error
    finally:
        # An interrupt must not leave processes behind that continue to train.
        pipes.end_processes([child for child in multiprocessing.active_children() if child not in running])
        receiver.close()
        if port is None:
            os.environ.pop("MASTER_PORT", None)
    if receiver.refusal is not None:
        raise receiver.refusal
    if receiver.errors:
        raise receiver.errors[min(receiver.errors)]
    if failure is not None:
        raise StageError(
            f"A training process of {compute.devices} failed",
            why=str(failure).strip() or type(failure).__name__,
            hint="--set compute.devices=1 to see whether it is the network or the devices",
        ) from failure
    return metrics


def _in_process(
    fabric: Fabric, *, compute: Compute, work: Work, context: Context, writers: Sequence[Connection]
) -> Metrics:
    """Run the work in one of several processes; send a KdpipeError before it ends all of them."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    sender = pipes.Sender(writers[fabric.global_rank])
    if fabric.global_rank == 0:
        context = replace(context, progress=sender)
    with reproducible(compute, context.settings.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*find_unused_parameters=True.*")
        try:
            return work(fabric, context)
        except KdpipeError as error:
            sender.failed(error)
            raise
        except KeyboardInterrupt:
            # PyTorch regards an interrupted process as finished, and would wait for its result.
            sys.exit(EXIT_INTERRUPTED)


def _portable(settings: SimpleNamespace) -> SimpleNamespace:
    """Return the same settings in classes that another process can import.

    The profile's class of `distill` is created at run time from the installed methods.
    """
    from stages.training.settings import DistillSettings

    values: Mapping[str, Any] = dict(vars(settings))
    return SimpleNamespace(
        **{
            name: DistillSettings.model_construct(**dict(value))
            if isinstance(value, DistillSettings)
            else value
            for name, value in values.items()
        }
    )
