"""Third-party runtimes, installed the way pip leaves them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent


def install_plugin(folder: Path, name: str, code: str, *, value: str | None = None) -> None:
    """Writes a package with one module `NAME_plugin` and its entry point into `folder`."""
    (folder / f"{name}_plugin.py").write_text(dedent(code), encoding="utf-8")
    info = folder / f"{name}_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.2\n")
    points = f"[kdpipe.runtimes]\n{name} = {value or f'{name}_plugin:RUNTIME'}\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


NUMPY_RUNTIME = '''
    """A runtime that runs the file with onnx's own reference evaluator."""

    import shutil

    import numpy as np

    from stages.runtimes.base import Ability
    from stages.runtimes.images import as_input


    class Session:
        def __init__(self, file, source):
            from onnx.reference import ReferenceEvaluator

            self.facts = {"effective_precision": "fp32", "device": "CPU", "threads": 1}
            self.evaluator = ReferenceEvaluator(str(file))
            self.source = source

        def logits(self, images):
            logits = self.evaluator.run(["logits"], {"input": as_input(images, self.source)})[0]
            return logits * SCALE

        def timed(self, images):
            return lambda: self.logits(images)


    class Runtime:
        name = "NAME"
        precisions = ("fp32",)
        not_offered = {"int8": "it computes floats only"}
        recipe = "signed"
        distributions = ("NAME-plugin",)

        def ability_to_build(self):
            return Ability(True, versions={"NAME-plugin": "1.2"})

        ability_to_run = ability_to_build

        def build(self, source, output, settings, progress, work):
            shutil.copyfile(source.onnx, output / "model.onnx")
            return {}

        def load(self, folder, source, threads):
            return Session(folder / "model.onnx", source)


    RUNTIME = Runtime()
'''


def numpy_runtime(name: str, *, scale: float = 1.0) -> str:
    """Code of a working runtime; with `scale` other than 1 it computes something else."""
    return NUMPY_RUNTIME.replace("NAME", name).replace("SCALE", repr(scale))


def install_nothing_but(folder: Path, distribution: str, version: str) -> None:
    """The mark that pip leaves of an installed distribution, and none of its files."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
