"""Start the processes that measure, each new and bound to its cores, and read their results."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.child_process import environment, last_line, python_command
from pipeline.errors import StageError
from pipeline.heartbeat import Beat, Heartbeat, Hung, Silence, beat_of, follow
from pipeline.machine import allowed_cores
from stages.measuring import pinning
from stages.measuring.settings import MeasureSettings


@dataclass(frozen=True)
class Subject:
    """A built target to measure.

    Attributes:
        target: Its entry of build.json.
        card: The network's `model.json`.
        folder: Of the target's files.
        images: The file of the test images, uint8 NHWC .npy.
        work: The folder in which workers write.
    """

    target: dict[str, Any]
    card: dict[str, Any]
    folder: Path
    images: Path
    work: Path

    @property
    def slug(self) -> str:
        """Model and target as one word, for file names."""
        return f"{self.target['model']}-{self.target['target']}"

    @property
    def batch_max(self) -> int:
        """The largest batch that the target accepts."""
        return int(self.target.get("facts", {}).get("batch_max") or 2**31)

    @property
    def batch_min(self) -> int:
        """The smallest batch that the target accepts."""
        return int(self.target.get("facts", {}).get("batch_min") or 1)

    def accepts_batch(self, batch: int) -> bool:
        """Return whether the target runs batches of this size."""
        return self.batch_min <= batch <= self.batch_max

    def worker_job(self, measure: MeasureSettings, mode: str, **entries: Any) -> dict[str, Any]:
        """Return the content of a worker's job file.

        Args:
            measure: How to measure.
            mode: What to measure, see `stages.measuring.worker`.
            entries: Further entries: `output`, `cores`, `threads`, and those of the mode.
        """
        preprocessing = self.card["preprocessing"]
        size = preprocessing["image_size"]
        return {
            "mode": mode,
            "runtime": self.target["runtime"],
            "precision": self.target["precision"],
            "folder": str(self.folder),
            "image_shape": [size, size, preprocessing["channels"]],
            "input": self.card["input"],
            "mean": preprocessing["mean"],
            "std": preprocessing["std"],
            "batch_min": self.batch_min,
            "batch_max": self.batch_max,
            "images": str(self.images),
            "settings": measure.model_dump(mode="json"),
            **entries,
        }


def cores_for(measure: MeasureSettings, threads: int) -> list[int]:
    """Return the cores to which a process with so many threads is bound; without `measure.pin`, all."""
    allowed = set(allowed_cores())
    return sorted(pinning.choose_cores(threads, allowed) if measure.pin else allowed)


def run(
    subject: Subject,
    measure: MeasureSettings,
    mode: str,
    *,
    on_beat: Callable[[Beat], object] = lambda _beat: None,
    silence: Silence | None = None,
    **entries: Any,
) -> tuple[dict[str, Any], Path]:
    """Run one worker to its end, without a time limit, unless it hangs (`pipeline.heartbeat`).

    Args:
        subject: The target.
        measure: How to measure it.
        mode: What to measure, see `stages.measuring.worker`.
        on_beat: Called with each of the worker's beats.
        silence: How long the worker may be silent.
        entries: Further entries of the worker's job, such as `threads`.

    Returns:
        The worker's result, and the folder of its files.

    Raises:
        StageError: The worker hung, ended without a result, or reported an error.
    """
    name = "-".join([subject.slug, mode, *(f"{value}" for value in entries.values() if value is not None)])
    output = make_empty_folder(subject.work / name)
    cores = cores_for(measure, int(entries.get("threads") or measure.threads[-1]))
    job_file = write_job(
        subject.worker_job(measure, mode, output=str(output), cores=cores, **entries), output
    )
    with (output / "stderr.txt").open("w+", encoding="utf-8", errors="replace") as errors:
        process = start(job_file, subject, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            for line in follow(process, Heartbeat(silence or Silence(), time.monotonic())):
                beat = beat_of(line)
                if beat:
                    on_beat(beat)
            process.wait()
        except Hung as why:
            raise hang_error(subject, str(why)) from None
        finally:
            end(process)
        errors.seek(0)
        stderr = errors.read()
    return read_result(output, process.returncode, stderr, subject.target["target"]), output


def start(job_file: Path, subject: Subject, *, stdin: int, stderr: IO[str]) -> subprocess.Popen[bytes]:
    """Start a worker; it writes its beats and answers to its standard output.

    Args:
        job_file: Of `write_job`.
        subject: The target, for messages.
        stdin: As of `subprocess.Popen`.
        stderr: The open file for its standard error.

    Raises:
        StageError: The process cannot be started.
    """
    try:
        return subprocess.Popen(
            worker_command(job_file), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment()
        )
    except OSError as error:
        target = subject.target["target"]
        raise StageError(
            f"the process that measures {target} cannot be started",
            where=f"stage measure, target {target}",
            why=str(error),
            hint="free memory or end other processes, then run the same command again",
        ) from error


def hang_error(subject: Subject, why: str) -> StageError:
    """Return the error for a worker that hung."""
    target = subject.target["target"]
    return StageError(
        f"measuring {target} hung",
        where=f"stage measure, target {target}",
        why=why,
        hint="run the same command again; if it hangs again, remove the target from `targets`",
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a worker that is still running, and wait for it."""
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def make_empty_folder(folder: Path) -> Path:
    """Remove the folder if it exists, and make it anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_job(job: dict[str, Any], folder: Path) -> Path:
    """Write a job file into the folder, and return its path."""
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    return file


def worker_command(job_file: Path) -> list[str]:
    """Return the command line of a worker."""
    return python_command("stages.measuring.worker", str(job_file))


def read_result(folder: Path, returncode: int, stderr: str, target: str) -> dict[str, Any]:
    """Return the worker's `result.json`.

    Args:
        folder: The worker's output folder.
        returncode: Its exit status.
        stderr: Its standard error.
        target: The target's name, for messages.

    Raises:
        StageError: There is no result, or the worker reported an error.
    """
    where = f"stage measure, target {target}"
    file = folder / "result.json"
    if returncode != 0 or not file.exists():
        raise StageError(
            f"the process that measured {target} ended without a result",
            where=where,
            why=_why_ended(returncode, stderr),
            hint="if it was killed for memory, lower measure.accuracy_batch or measure.batch_sizes",
        )
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "error" in result:
        error = result["error"]
        raise StageError(error["what"], where=error["where"] or where, why=error["why"], hint=error["hint"])
    return result


def _why_ended(returncode: int, stderr: str) -> str:
    if returncode < 0:
        return f"it was ended by {signal.Signals(-returncode).name}"
    return last_line(stderr) or f"exit code {returncode}, and nothing on standard error"
