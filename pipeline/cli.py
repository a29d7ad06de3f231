"""The command line: its commands, and how every ending becomes an exit code."""

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


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).console.document(f"kdpipe {__version__}")
        ctx.exit(EXIT_DONE)


group = Group(
    "kdpipe",
    help="From a big accurate image classifier to a compact student that runs on a device.",
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
        "Say what each distillation method gains, and how sure that is.",
    ),
    ("pick", "pipeline.commands.gate:pick", "Name the target to ship under the gates, and why."),
    ("device", "pipeline.commands.device:device", "Check your own devices, and measure targets on them."),
    ("ship", "pipeline.commands.ship:ship", "Install the bundle on a device, list, roll back."),
    ("plan", "pipeline.commands.plan:plan", "Print for each stage: cached, or why it has to run."),
    ("debug", "pipeline.commands.debug:debug", "Find the first layer at which a conversion goes wrong."),
    ("show", "pipeline.commands.show:show", "Print a profile with every default written out."),
    ("schema", "pipeline.commands.show:schema", "Print the JSON Schema of profiles."),
    ("doctor", "pipeline.commands.doctor:doctor", "Say what this machine can do, and prove it."),
    ("clean", "pipeline.commands.clean:clean", "Remove artefacts from the store."),
    ("completion", "pipeline.commands.completion:completion", "Print a shell's completion script."),
):
    group.add_lazy(_name, _target, _summary, "Commands")
OWN_COMMANDS = {"gate": "pipeline.commands.gate:gate"}
"""Stages whose command says more than that of the others."""

for _stage in STAGES:
    _target = OWN_COMMANDS.get(_stage.name, "pipeline.commands.run:stage_command()")
    group.add_lazy(_stage.name, _target, _stage.summary, "Stages")


def main(arguments: Sequence[str] | None = None, loaded: LoadedProfile | None = None) -> int:
    """Run one command line.

    Args:
        arguments: The words after `kdpipe`; None for those of this process.
        loaded: The profile that the command line is about, if it is loaded: its file is then not read again.

    Returns:
        The exit code.
    """
    # GNU OpenMP's threads spin at barriers for long. On a core that another process wants, that
    # multiplies the time of a training step; never spinning costs small networks much on quiet cores.
    # A short spin is near the best of both. Read once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "kdpipe", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    words = list(sys.argv[1:] if arguments is None else arguments)
    session = Session(loaded=loaded)
    _foresee(session, words)
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
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        if not words:
            session.console.line(error.format_message())
            return EXIT_USAGE
        raise _in_our_words(error) from error


def _foresee(session: Session, words: list[str]) -> None:
    """What a faulty command line has to obey as well, though it cannot be parsed."""
    ours = words[: words.index("--")] if "--" in words else words
    session.json = "--json" in ours
    session.traceback = "--traceback" in ours
    session.command = next((word for word in ours if word in group.lazy), "")
    for first, second in zip(ours, [*ours[1:], ""], strict=False):
        name, _, value = first.partition("=")
        if name == "--color" and (value or second) in ("always", "never"):
            session.console.color = value or second


def _in_our_words(error: click.ClickException) -> UsageError:
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
    said = error.format_message().rstrip(".")
    return UsageError(said[:1].lower() + said[1:], where=command, hint=see_help)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what goes on as an interrupt does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: the caller's own handling stands
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
