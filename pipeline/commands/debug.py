"""`kdpipe debug`: find the first layer at which a conversion goes wrong, and cut a minimal model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command, Option
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
            "Nothing to debug" if profile is None else "A profile and --onnx exclude each other",
            where="kdpipe debug",
            why="the command examines either the conversions of a profile, or two ONNX files",
            hint="kdpipe debug PROFILE, or kdpipe debug --onnx A.onnx --against B.onnx --inputs X.npy",
        )
    folder = _output_folder(output)
    if profile is None:
        assert onnx is not None
        document = _debug_files(session, onnx, against, inputs, tolerance, folder)
    else:
        selection = {"model": model, "target": target, "tolerance": tolerance, "images": images}
        document = _debug_profile(session, profile, overrides, store, selection, folder)
    if session.json:
        session.print_json(**document)
    else:
        from pipeline.console.debug_text import debug_text

        session.console.result(debug_text(document))
    return EXIT_DONE if document["healthy"] else EXIT_GATE_MISSED


def _debug_files(
    session: Session,
    onnx: str,
    against: str | None,
    inputs: tuple[str, ...],
    tolerance: float | None,
    folder: Path | None,
) -> dict[str, Any]:
    """Compare two ONNX files layer by layer; return the fields of the JSON document."""
    if against is None or not inputs:
        raise UsageError(
            "--onnx needs a reference and inputs",
            where="kdpipe debug --onnx",
            why="--against is missing" if against is None else "--inputs is missing",
            hint="kdpipe debug --onnx SUSPECT.onnx --against REFERENCE.onnx --inputs X.npy",
        )
    from pipeline.running.key_facts import resolve
    from pipeline.store.store import Store

    store = Store(session.store)
    files = {"onnx": onnx, "against": against, "inputs": list(inputs)}
    session.so_far = lambda: {**files, "steps": []}
    destination = folder or store.root / "debug" / Path(onnx).stem
    debug_pair = resolve(DEBUG_PAIR)
    if folder is None:
        shutil.rmtree(destination, ignore_errors=True)  # the minimal models of an earlier call
    with _prepared(store, needed=folder is None), guarded_output():
        comparison = debug_pair(Path(onnx), Path(against), list(inputs), tolerance, destination)
    return {**files, **comparison}


def _debug_profile(
    session: Session,
    profile: str,
    overrides: tuple[str, ...],
    store: str | None,
    selection: dict[str, Any],
    folder: Path | None,
) -> dict[str, Any]:
    """Compare every conversion of a profile layer by layer; return the fields of the JSON document."""
    from pipeline.console.progress import ConsoleListener
    from pipeline.running.key_facts import resolve

    loaded, opened = open_profile(session, profile, overrides, store)
    call_fields = {name: value for name, value in session.so_far().items() if name != "stages"}
    session.so_far = lambda: {**call_fields, **selection, "steps": []}
    names = ("train", "distill", *CONVERSIONS, "debug")
    with guarded_output(), ConsoleListener(session.console, names) as listener:
        artefacts = _artefacts(session, loaded, opened, selection, listener)
        destination = folder or opened.root / "debug" / f"{loaded.name}-{selection['model']}"
        if folder is None:
            shutil.rmtree(destination, ignore_errors=True)  # the minimal models of an earlier call
        settings = loaded.settings(("build", "data", "targets"))
        debug_line = resolve(DEBUG_LINE)
        comparison = debug_line(settings, artefacts, selection, destination, listener.progress("debug"))
    return {**call_fields, **selection, **comparison}


def _artefacts(
    session: Session,
    loaded: LoadedProfile,
    store: Store,
    selection: dict[str, Any],
    listener: ConsoleListener,
) -> dict[str, Path]:
    """Return the folders of the stages up to build.

    If a conversion fails its proofs, the conversions run again without proofs, because the failed files are
    those to examine.
    """
    outcome = bring_up_to_date(session, loaded, store, only="build", listener=listener)
    if outcome.error is None:
        failure = _failed_proof(outcome.results, selection)
    elif isinstance(outcome.error, StageError) and outcome.failed and outcome.failed.name in CONVERSIONS:
        failure = outcome.error.what
    else:
        raise outcome.error
    if failure:
        listener.note(f"{failure}; the conversions are made again without their proofs, to examine them")
        unproved = loaded.with_overrides(UNPROVED, memo_folder(store.root))
        outcome = bring_up_to_date(session, unproved, store, only="build", listener=listener)
        outcome.raise_for_result()
    return {result.name: result.path for result in outcome.results if result.path}


def _failed_proof(results: Sequence[StageResult], selection: dict[str, Any]) -> str:
    """Return which selected target was built and then rejected by its proof, and why; empty if none was."""
    built = next(result for result in results if result.name == "build")
    assert built.path is not None
    for row in json.loads((built.path / "build.json").read_text(encoding="utf-8"))["targets"]:
        is_selected = row["model"] == selection["model"] and selection["target"] in (None, row["target"])
        if is_selected and row.get("disproved"):
            return f"{row['target']}: {row['why_not']}"
    return ""


def _output_folder(output: str | None) -> Path | None:
    """Return the absolute path of --output.

    Raises:
        UsageError: The folder is not empty; a file of the user is never overwritten.
    """
    if output is None:
        return None
    folder = Path(output).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "The output folder is not empty",
            where=str(folder),
            why="minimal models are written there, and existing files are never overwritten",
            hint="give another folder with --output, or empty this one",
        )
    return folder


@contextmanager
def _prepared(store: Store, *, needed: bool) -> Iterator[None]:
    """Create the store's folders if they are needed; remove them again if nothing was written."""
    if not needed:
        yield
        return
    store.prepare()
    try:
        yield
    finally:
        store.undo()
        store.release()


debug = Command(
    "debug",
    help="Find the first layer at which a conversion goes wrong, and cut a minimal model that shows it.\n\n"
    "Compares every conversion of a profile's student on real test images (PyTorch to ONNX, to fp16, bf16 or "
    "INT8, to the built target), or any two ONNX files. Exits with 3 if a conversion diverges.",
    params=[
        click.Argument(["profile"], type=ProfilePath(), metavar="[PROFILE]", required=False),
        set_option(),
        Option(
            ["--model"],
            type=click.Choice(["student", "teacher"]),
            default="student",
            heading="Models",
            help="Examine the conversions of this model. Default: student.",
        ),
        Option(
            ["--target"],
            metavar="NAME",
            heading="Models",
            help="Examine only this target, e.g. openvino-int8. Default: all targets of the profile.",
        ),
        Option(
            ["--onnx"],
            metavar="FILE",
            heading="Models",
            help="Examine this ONNX file instead of a profile.",
        ),
        Option(
            ["--against"],
            metavar="FILE",
            heading="Models",
            help="Compare with this ONNX file, the reference.",
        ),
        Option(
            ["--inputs"],
            multiple=True,
            metavar="[NAME=]FILE.npy",
            heading="Models",
            help="Give this array to both files. Repeatable, in the order of the inputs.",
        ),
        Option(
            ["--images"],
            type=click.IntRange(min=1),
            default=16,
            metavar="N",
            heading="Models",
            help="Compare on this many test images. Default: 16.",
        ),
        Option(
            ["--tolerance"],
            type=click.FloatRange(min=0.0, min_open=True),
            metavar="X",
            heading="Models",
            help="Allow this difference of a layer: root mean square, relative to the spread of its values. "
            "Default: 0.001 for fp32, 0.05 for fp16, 0.15 for bf16, 0.5 for INT8.",
        ),
        Option(
            ["--output"],
            type=click.Path(file_okay=False),
            metavar="DIR",
            heading="Output",
            help="Write the minimal models to this empty folder. Default: debug in the store.",
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
    exit_codes=RUN_EXIT_CODES,
)
