"""The command line: its commands, and the exit code of every outcome."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click

from pipeline import __version__
from pipeline.commands.base import COMPLETION_VARIABLE, Group, UnknownName, did_you_mean
from pipeline.console.console import abandon
from pipeline.console.session import Session, Terminated
from pipeline.errors import EXIT_DONE, EXIT_USAGE, KdpipeError, UsageError
from stages import STAGES

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).console.document(f"kdpipe {__version__}")
        ctx.exit(EXIT_DONE)


group = Group(
    "kdpipe",
    help="Distill an accurate image classifier into a compact student that runs on a device.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        )
    ],
)
for _name, _target, _summary in (
    ("run", "pipeline.commands.run:run", "Bring every stage up to date and show the scorecard."),
    (
        "compare",
        "pipeline.commands.compare:compare",
        "Compare what each distillation method gains, with confidence intervals.",
    ),
    ("pick", "pipeline.commands.gate:pick", "Print the target to ship under the gates, and why."),
    ("device", "pipeline.commands.device:device", "Check your own devices, and measure targets on them."),
    ("ship", "pipeline.commands.ship:ship", "Install the bundle on a device, list its versions, roll back."),
    (
        "plan",
        "pipeline.commands.plan:plan",
        "Print for each stage whether it is cached, or why it has to run.",
    ),
    ("debug", "pipeline.commands.debug:debug", "Find the first layer at which a conversion goes wrong."),
    ("show", "pipeline.commands.show:show", "Print a profile with every default written out."),
    ("schema", "pipeline.commands.show:schema", "Print the JSON Schema of profiles."),
    (
        "doctor",
        "pipeline.commands.doctor:doctor",
        "Check this machine: versions, hardware, stages and targets that work here.",
    ),
    ("clean", "pipeline.commands.clean:clean", "Remove artefacts from the store."),
    ("completion", "pipeline.commands.completion:completion", "Print a shell's completion script."),
):
    group.add_lazy(_name, _target, _summary, "Commands")
OWN_COMMANDS = {"gate": "pipeline.commands.gate:gate"}
"""Stages that have a command of their own."""

for _stage in STAGES:
    _target = OWN_COMMANDS.get(_stage.name, "pipeline.commands.run:stage_command()")
    group.add_lazy(_stage.name, _target, _stage.summary, "Stages")


def main(arguments: Sequence[str] | None = None, loaded: LoadedProfile | None = None) -> int:
    """Run one command line.

    Args:
        arguments: The words after `kdpipe`; None for those of this process.
        loaded: The profile of the command line, if it is loaded: its file is then not read again.

    Returns:
        The exit code.
    """
    # GNU OpenMP's threads spin at barriers for a long time. On a core that another process uses too, this
    # multiplies the time of a training step; without spinning, small networks are much slower on idle
    # cores. A short spin is close to the better of the two. torch reads it once, when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "kdpipe", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    words = list(sys.argv[1:] if arguments is None else arguments)
    session = Session(loaded=loaded)
    _set_output_options(session, words)
    with _terminable():
        try:
            session.console.check_environment()
            return _invoke(session, words)
        except KdpipeError as error:
            return session.fail(error)
        except KeyboardInterrupt as interrupt:
            return session.interrupted(interrupt)
        except BrokenPipeError:  # `kdpipe --help | head`, written by click
            abandon(sys.stdout)
            return EXIT_DONE
        except Exception as error:
            return session.defect(error)


def _invoke(session: Session, words: list[str]) -> int:
    try:
        with group.make_context("kdpipe", words, obj=session) as context:
            code = group.invoke(context)
            return code if isinstance(code, int) else EXIT_DONE
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        if not words:
            session.console.line(error.format_message())
            return EXIT_USAGE
        raise _usage_error(error) from error


def _set_output_options(session: Session, words: list[str]) -> None:
    """Set the output options in advance: they hold even for a command line that cannot be parsed."""
    options = words[: words.index("--")] if "--" in words else words
    session.json = "--json" in options
    session.traceback = "--traceback" in options
    session.command = next((word for word in options if word in group.lazy), "")
    for first, second in zip(options, [*options[1:], ""], strict=False):
        name, _, value = first.partition("=")
        if name == "--color" and (value or second) in ("always", "never"):
            session.console.color = value or second


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kdpipe"
    see_help = f"{command} --help"
    if isinstance(error, UnknownName):
        expected = f"expected {error.expected}"
        return UsageError(error.message, where=command, why=expected, hint=error.hint or see_help)
    if isinstance(error, click.NoSuchOption):
        known = [name for param in context.command.params for name in param.opts] if context else []
        near = did_you_mean(error.option_name, [name for name in known if name.startswith("--")])
        return UsageError(f"no option {error.option_name}", where=command, hint=near or see_help)
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], where=command, hint=see_help)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the command the way an interrupt does."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
