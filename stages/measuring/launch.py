"""Starts the processes that measure, each fresh and bound to its cores, and reads what they found."""

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

from pipeline.child_process import environment, python_command
from pipeline.errors import StageError
from pipeline.heartbeat import Beat, Heartbeat, Hung, Silence, beat_of, follow
from pipeline.machine import allowed_cores
from stages.measuring import pinning
from stages.measuring.settings import MeasureSettings


@dataclass(frozen=True)
class Subject:
    """A built target to be measured: an entry of build.json and its network's card.

    folder: of the target's files; images: the file of the test images; work: where workers write.
    """

    target: dict[str, Any]
    card: dict[str, Any]
    folder: Path
    images: Path
    work: Path

    @property
    def slug(self) -> str:
        return f"{self.target['model']}-{self.target['target']}"

    @property
    def batch_max(self) -> int:
        return int(self.target.get("facts", {}).get("batch_max") or 2**31)

    @property
    def batch_min(self) -> int:
        return int(self.target.get("facts", {}).get("batch_min") or 1)

    def takes(self, batch: int) -> bool:
        return self.batch_min <= batch <= self.batch_max

    def job(self, measure: MeasureSettings, mode: str, **more: Any) -> dict[str, Any]:
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
            **more,
        }


def cores_for(measure: MeasureSettings, threads: int) -> list[int]:
    """The cores a process with so many threads is bound to; without `measure.pin`, all."""
    allowed = set(allowed_cores())
    return sorted(pinning.choose(threads, allowed) if measure.pin else allowed)


def run(
    subject: Subject,
    measure: MeasureSettings,
    mode: str,
    *,
    heard: Callable[[Beat], object] = lambda beat: None,
    silence: Silence | None = None,
    **more: Any,
) -> tuple[dict[str, Any], Path]:
    """Runs one worker to its end, however long that takes, unless it falls silent (`pipeline.heartbeat`).

    Args:
        subject: the target.
        measure: how to measure it.
        mode: what to measure, see `stages.measuring.worker`.
        heard: called with each of the worker's beats.
        silence: how long the worker may be silent.
        more: further entries of the worker's job; `threads` among them.

    Returns:
        The worker's result, and the folder that it wrote into.

    Raises:
        StageError: the worker hung, died or refused.
    """
    name = "-".join([subject.slug, mode, *(f"{value}" for value in more.values() if value is not None)])
    output = fresh_folder(subject.work / name)
    cores = cores_for(measure, int(more.get("threads") or measure.threads[-1]))
    job_file = write_job(subject.job(measure, mode, output=str(output), cores=cores, **more), output)
    with (output / "stderr.txt").open("w+", encoding="utf-8", errors="replace") as errors:
        process = start(job_file, subject, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            for line in follow(process, Heartbeat(silence or Silence(), time.monotonic())):
                beat = beat_of(line)
                if beat:
                    heard(beat)
            process.wait()
        except Hung as why:
            raise hung(subject, str(why)) from None
        finally:
            end(process)
        errors.seek(0)
        said = errors.read()
    return read_result(output, process.returncode, said, subject.target["target"]), output


def start(job_file: Path, subject: Subject, *, stdin: int, stderr: IO[str]) -> subprocess.Popen[bytes]:
    """Starts a worker; its beats and answers come on its standard output. Raises StageError if that fails."""
    try:
        return subprocess.Popen(
            command(job_file), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment()
        )
    except OSError as error:
        target = subject.target["target"]
        raise StageError(
            f"the process that measures {target} cannot be started",
            where=f"stage measure, target {target}",
            why=str(error),
            hint="free memory or end other processes, then run it again",
        ) from error


def hung(subject: Subject, why: str) -> StageError:
    """What to raise for a worker that fell silent."""
    target = subject.target["target"]
    return StageError(
        f"measuring {target} hung",
        where=f"stage measure, target {target}",
        why=why,
        hint="run it again; if it hangs again, leave the target out of `targets`",
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker that is still running, and waits for it."""
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def fresh_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_job(job: dict[str, Any], folder: Path) -> Path:
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    return file


def command(job_file: Path) -> list[str]:
    return python_command("stages.measuring.worker", str(job_file))


def read_result(folder: Path, returncode: int, stderr: str, target: str) -> dict[str, Any]:
    """The worker's `result.json`. Raises StageError if there is none, or the one it tells of."""
    where = f"stage measure, target {target}"
    file = folder / "result.json"
    if returncode != 0 or not file.exists():
        raise StageError(
            f"the process that measured {target} ended without a result",
            where=where,
            why=_last_words(returncode, stderr),
            hint="if it was killed for memory, lower measure.accuracy_batch or measure.batch_sizes",
        )
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "error" in result:
        error = result["error"]
        raise StageError(error["what"], where=error["where"] or where, why=error["why"], hint=error["hint"])
    return result


def _last_words(returncode: int, stderr: str) -> str:
    if returncode < 0:
        return f"it was ended by {signal.Signals(-returncode).name}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {returncode}, and nothing said"
