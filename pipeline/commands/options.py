"""The arguments and options that several commands take.

This module imports no third-party package but click, because `--help` must print at once.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.commands.base import Option, UnknownName, did_you_mean
from pipeline.console.session import Session
from stages import STAGES

STAGE_NAMES = tuple(stage.name for stage in STAGES)


class StageName(click.ParamType):
    """The name of a stage; the error suggests similar names."""

    name = "stage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name.

        Raises:
            UnknownName: There is no such stage.
        """
        if value in STAGE_NAMES:
            return str(value)
        option = param.opts[0] if param and param.opts else "stage"
        raise UnknownName(
            f"{option}: no stage {value!r}",
            f"one of {', '.join(STAGE_NAMES)}",
            did_you_mean(str(value), STAGE_NAMES),
            ctx,
        )

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - the interface passes it
        param: click.Parameter,  # noqa: ARG002 - the interface passes it
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the stages that start like this."""
        return [CompletionItem(name) for name in STAGE_NAMES if name.startswith(incomplete)]


class ProfilePath(click.ParamType):
    """The path of a profile; a shell completes folders and YAML files."""

    name = "profile"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - the interface passes it
        param: click.Parameter,  # noqa: ARG002 - the interface passes it
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the YAML files that start like this, or leave the completion of folders to the shell."""
        folder, start = os.path.split(incomplete)
        try:
            entries = [entry for entry in os.scandir(folder or ".") if entry.name.startswith(start)]
        except OSError:
            return []
        if not any(entry.is_dir() and (start or not entry.name.startswith(".")) for entry in entries):
            names = sorted(entry.name for entry in entries if entry.name.endswith((".yaml", ".yml")))
            if names:
                return [CompletionItem(f"{folder}/{name}" if folder else name) for name in names]
        # Only the shell itself completes a folder without adding a blank.
        return [CompletionItem(incomplete, type="file")]


def profile_argument() -> click.Argument:
    """Return PROFILE."""
    return click.Argument(["profile"], type=ProfilePath(), metavar="PROFILE")


def set_option() -> Option:
    """Return `--set`."""
    return Option(
        ["--set", "overrides"],
        multiple=True,
        metavar="KEY=VALUE",
        heading="Profile",
        help="Override a value of the profile, e.g. distill.epochs=5. Repeatable.",
    )


def store_option() -> Option:
    """Return `--store`."""
    return Option(
        ["--store"],
        type=click.Path(file_okay=False),
        metavar="DIR",
        envvar="KDPIPE_STORE",
        heading="Store",
        help="Keep artefacts in this folder. Default: $KDPIPE_STORE, else .kdpipe in the working folder.",
    )


def json_option() -> Option:
    """Return `--json`."""

    def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Session).json = True

    return Option(
        ["--json"],
        is_flag=True,
        expose_value=False,
        callback=callback,
        heading="Output",
        help="Print one JSON document on standard output, also on errors.",
    )


def until_option() -> Option:
    """Return `--until`."""
    return Option(
        ["--until"],
        type=StageName(),
        metavar="STAGE",
        heading="Stages",
        help="Stop after this stage.",
    )


def force_option() -> Option:
    """Return `--force`."""
    return Option(
        ["--force"],
        type=StageName(),
        multiple=True,
        metavar="STAGE",
        heading="Stages",
        help="Run this stage even if it is cached. Repeatable.",
    )


def remote_option() -> Option:
    """Return `--remote`."""
    return Option(
        ["--remote"],
        metavar="URL",
        heading="Store",
        help="Pull artefacts from this URL before a stage runs, push them there after it (any fsspec URL).",
    )


def track_option() -> Option:
    """Return `--track`."""
    return Option(
        ["--track"],
        metavar="URI",
        envvar="KDPIPE_TRACKING_URI",
        heading="Other machines",
        help="After the run, log it to this MLflow server. Default: $KDPIPE_TRACKING_URI, else none.",
    )


def on_option() -> Option:
    """Return `--on`."""
    return Option(
        ["--on"],
        metavar="CLUSTER",
        heading="Other machines",
        help="Run the stages as tasks of a Ray cluster: ray or ray://HOST:PORT.",
    )
