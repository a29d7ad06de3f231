"""`kdpipe debug`: the first layer at which a conversion goes wrong, and a minimal model that shows it."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipeline.commands.base import EVERY_RUN, Command, Option
from pipeline.commands.options import ProfilePath, json_option, set_option, store_option
from pipeline.commands.profiles import memo_folder, open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import guarded_output
from pipeline.console.session import Session, store_folder
from pipeline.errors import EXIT_DONE, EXIT_GATE_MISSED, StageError, UsageError
from stages import DEBUG_LINE, DEBUG_PAIR, UNPROVED

if TYPE_CHECKING:
    from pipeline.console.progress import ConsoleListener
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import StageResult
    from pipeline.store.store import Store

CONVERSIONS = ("export", "quantize", "build")


def _debug(
    profile: str | None,
    onnx: str | None,
    against: str | None,
    inputs: tuple[str, ...],
    model: str,
    target: str | None,
    tolerance: float | None,
    images: int,
    output: str | None,
    overrides: tuple[str, ...],
    store: str | None,
) -> int:
    session = click.get_current_context().ensure_object(Session)
    session.store = store_folder(store)
    if (profile is None) == (onnx is None):
        raise UsageError(
            "Nothing to debug" if profile is None else "A profile and --onnx at once",
            where="kdpipe debug",
            why="it looks either at the conversions of a profile, or at two ONNX files",
            hint="kdpipe debug PROFILE, or kdpipe debug --onnx A.onnx --against B.onnx --inputs X.npy",
        )
    folder = _output_folder(output)
    if profile is None:
        assert onnx is not None
        document = _pair(session, onnx, against, inputs, tolerance, folder)
    else:
        asked = {"model": model, "target": target, "tolerance": tolerance, "images": images}
        document = _line(session, profile, overrides, store, asked, folder)
    if session.json:
        session.print_json(**document)
    else:
        from pipeline.console.debug_text import debug_text

        session.console.result(debug_text(document))
    return EXIT_DONE if document["healthy"] else EXIT_GATE_MISSED


def _pair(
    session: Session,
    onnx: str,
    against: str | None,
    inputs: tuple[str, ...],
    tolerance: float | None,
    folder: Path | None,
) -> dict[str, Any]:
    if against is None or not inputs:
        raise UsageError(
            "--onnx needs something to compare with",
            where="kdpipe debug --onnx",
            why="--against is missing" if against is None else "--inputs is missing",
            hint="kdpipe debug --onnx SUSPECT.onnx --against REFERENCE.onnx --inputs X.npy",
        )
    from pipeline.store.store import Store

    store = Store(session.store)
    about = {"onnx": onnx, "against": against, "inputs": list(inputs)}
    session.so_far = lambda: {**about, "steps": []}
    place = folder or store.root / "debug" / Path(onnx).stem
    debug = _function(DEBUG_PAIR)
    if folder is None:
        shutil.rmtree(place, ignore_errors=True)  # what an earlier call left
    with _writable(store, folder is None), guarded_output():
        found = debug(Path(onnx), Path(against), list(inputs), tolerance, place)
    return {**about, **found}


def _line(
    session: Session,
    profile: str,
    overrides: tuple[str, ...],
    store: str | None,
    asked: dict[str, Any],
    folder: Path | None,
) -> dict[str, Any]:
    from pipeline.console.progress import ConsoleListener

    loaded, opened = open_profile(session, profile, overrides, store)
    about = {name: value for name, value in session.so_far().items() if name != "stages"}
    session.so_far = lambda: {**about, **asked, "steps": []}
    names = ("train", "distill", *CONVERSIONS, "debug")
    with guarded_output(), ConsoleListener(session.console, names) as listener:
        artefacts = _artefacts(session, loaded, opened, asked, listener)
        place = folder or opened.root / "debug" / f"{loaded.name}-{asked['model']}"
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)  # what an earlier call left
        found = _function(DEBUG_LINE)(
            loaded.settings(("build", "data", "targets")), artefacts, asked, place, listener.progress("debug")
        )
    return {**about, **asked, **found}


def _artefacts(
    session: Session,
    loaded: LoadedProfile,
    store: Store,
    asked: dict[str, Any],
    listener: ConsoleListener,
) -> dict[str, Path]:
    """The folders of the line up to build. What does not pass its proofs is made once more without
    them, for it is what there is to look at."""
    outcome = bring_up_to_date(session, loaded, store, only="build", listener=listener)
    if outcome.error is None:
        refused = _refused(outcome.results, asked)
    elif isinstance(outcome.error, StageError) and outcome.failed and outcome.failed.name in CONVERSIONS:
        refused = outcome.error.what
    else:
        raise outcome.error
    if refused:
        listener.note(f"{refused}; the conversions are made again without their proofs, to look into them")
        unproved = loaded.with_overrides(UNPROVED, memo_folder(store.root))
        outcome = bring_up_to_date(session, unproved, store, only="build", listener=listener)
        outcome.raise_for_result()
    return {result.name: result.path for result in outcome.results if result.path}


def _refused(results: Sequence[StageResult], asked: dict[str, Any]) -> str:
    """Why a target that was asked for was built and then thrown away, if one was."""
    built = next(result for result in results if result.name == "build")
    assert built.path is not None
    for row in json.loads((built.path / "build.json").read_text(encoding="utf-8"))["targets"]:
        mine = row["model"] == asked["model"] and asked["target"] in (None, row["target"])
        if mine and row.get("disproved"):
            return f"{row['target']}: {row['why_not']}"
    return ""


def _output_folder(output: str | None) -> Path | None:
    """Raises UsageError if the folder holds something: nothing of the user's is ever overwritten."""
    if output is None:
        return None
    folder = Path(output).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "The output folder is not empty",
            where=str(folder),
            why="a minimal model is written there, and nothing is overwritten",
            hint="name another folder with --output, or empty this one",
        )
    return folder


class _writable:  # noqa: N801 - reads as the statement it makes
    """The store is made for what may be written into it, and gone again if nothing was."""

    def __init__(self, store: Store, needed: bool) -> None:
        self.store = store
        self.needed = needed

    def __enter__(self) -> None:
        if self.needed:
            self.store.prepare()

    def __exit__(self, *_: object) -> None:
        if self.needed:
            self.store.undo()
            self.store.release()


def _function(place: str) -> Callable[..., dict[str, Any]]:
    module, _, name = place.partition(":")
    return cast(Callable[..., dict[str, Any]], getattr(importlib.import_module(module), name))


debug = Command(
    "debug",
    help="Find the first layer at which a conversion goes wrong, and cut a minimal model that shows it.\n\n"
    "Looks at every conversion of a profile's student on real test images (PyTorch to ONNX, to fp16, bf16 or "
    "INT8, to the built target), or at any two ONNX files. Exits with 3 if one diverges.",
    params=[
        click.Argument(["profile"], type=ProfilePath(), metavar="[PROFILE]", required=False),
        set_option(),
        Option(
            ["--model"],
            type=click.Choice(["student", "teacher"]),
            default="student",
            heading="What to look at",
            help="Whose conversions. Default: student.",
        ),
        Option(
            ["--target"],
            metavar="NAME",
            heading="What to look at",
            help="This target alone, e.g. openvino-int8. Default: all of the profile.",
        ),
        Option(
            ["--onnx"],
            metavar="FILE",
            heading="What to look at",
            help="A suspect ONNX file, instead of a profile.",
        ),
        Option(["--against"], metavar="FILE", heading="What to look at", help="The ONNX file that is right."),
        Option(
            ["--inputs"],
            multiple=True,
            metavar="[NAME=]FILE.npy",
            heading="What to look at",
            help="What to feed both files. Repeatable, in the order of the inputs.",
        ),
        Option(
            ["--images"],
            type=click.IntRange(min=1),
            default=16,
            heading="What to look at",
            help="Test images compared. Default: 16.",
        ),
        Option(
            ["--tolerance"],
            type=click.FloatRange(min=0.0, min_open=True),
            metavar="X",
            heading="What to look at",
            help="Largest difference of a layer, root mean square, as a share of its values' spread. "
            "Default: 0.001 for fp32, 0.05 for fp16, 0.15 for bf16, 0.5 for INT8.",
        ),
        Option(
            ["--output"],
            type=click.Path(file_okay=False),
            metavar="DIR",
            heading="Output",
            help="An empty folder for the minimal models. Default: debug in the store.",
        ),
        json_option(),
        store_option(),
    ],
    callback=_debug,
    examples=(
        "kdpipe debug profiles/resnet_to_mobilenet.yaml --target onnxruntime-int8",
        "kdpipe debug profiles/resnet_to_mobilenet.yaml --model teacher --json",
        "kdpipe debug --onnx fp16.onnx --against fp32.onnx --inputs images.npy --output case",
    ),
    exit_codes=EVERY_RUN,
)
