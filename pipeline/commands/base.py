"""Commands and groups with kdpipe's help: grouped options, examples, exit codes, global options.

This module imports no third-party package but click, because `--help` must print at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline import plugins
from pipeline.console.session import Session
from pipeline.errors import (
    EXIT_DONE,
    EXIT_GATE_MISSED,
    EXIT_INTERRUPTED,
    EXIT_MACHINE_CANNOT,
    EXIT_STAGE_FAILED,
    EXIT_STALE,
    EXIT_TERMINATED,
    EXIT_USAGE,
)

COMPLETION_VARIABLE = "_KDPIPE_COMPLETE"
"""The environment variable that a shell sets to request completions."""

EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_STAGE_FAILED: "a stage failed, or kdpipe failed unexpectedly",
    EXIT_USAGE: "the command line, the profile or its data are invalid",
    EXIT_GATE_MISSED: "a gate was missed",
    EXIT_MACHINE_CANNOT: "this machine cannot do what is required",
    EXIT_STALE: "`plan --check` found stale stages",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated",
}
RUN_EXIT_CODES = (
    EXIT_DONE,
    EXIT_STAGE_FAILED,
    EXIT_USAGE,
    EXIT_GATE_MISSED,
    EXIT_MACHINE_CANNOT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
)
"""The exit codes of commands that run stages."""

ENVIRONMENT = {
    "KDPIPE_STORE": "the store, unless --store is given",
    "KDPIPE_TRACKING_URI": "the MLflow server, unless --track is given",
    "KDPIPE_LOG": "error, warning, info or debug: like -qq, -q, no option and -v",
    "KDPIPE_NO_PROGRESS": "like --no-progress",
    "NO_COLOR, FORCE_COLOR": "like --color never and --color always",
}


class Option(click.Option):
    """An option under a heading of the help."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class Command(click.Command):
    """A command whose help has one sentence, usage, examples, options by heading, and exit codes.

    Attributes:
        examples: Three command lines.
        exit_codes: The exit codes, keys of EXIT_CODES.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str] = (),
        exit_codes: Sequence[int] = (EXIT_DONE, EXIT_USAGE),
        **kwargs: Any,
    ) -> None:
        kwargs["params"] = [*(kwargs.get("params") or ()), *global_options()]
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.exit_codes = tuple(exit_codes)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        write_lines(formatter, "Examples", self.examples)
        self.format_options(ctx, formatter)
        write_exit_codes(formatter, self.exit_codes)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by heading."""
        write_options(formatter, ctx, self.get_params(ctx))

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return `--help`, as a global option."""
        return _under_global_options(super().get_help_option(ctx))


@dataclass(frozen=True)
class LazyCommand:
    """A command that is not imported yet.

    Attributes:
        target: "module:attribute", or "module:function()" for a function that makes the command of its name.
        summary: Its line in the group's help.
        heading: The heading of that line.
    """

    target: str
    summary: str
    heading: str


class Group(click.Group):
    """Commands that are imported when they are called.

    Attributes:
        lazy: By the command's name, its entry of `add_lazy`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or ()), *global_options()]
        super().__init__(*args, **kwargs)
        self.lazy: dict[str, LazyCommand] = {}

    def add_lazy(self, name: str, target: str, summary: str, heading: str) -> None:
        """Add a command; see `LazyCommand` for the arguments."""
        self.lazy[name] = LazyCommand(target, summary, heading)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the interface passes it
        """Return the names of the commands, in the order of the help."""
        return list(self.lazy)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - the interface passes it
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command; return None if there is no such command."""
        if cmd_name not in self.lazy:
            return None
        target = self.lazy[cmd_name].target
        attribute = plugins.imported(target.removesuffix("()"))
        command: click.Command = attribute(cmd_name) if target.endswith("()") else attribute
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first word.

        Raises:
            UnknownName: There is no such command.
        """
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            hint = did_you_mean(name, self.lazy)
            if not hint and name.endswith((".yaml", ".yml")):
                hint = f"kdpipe run {name}"
            raise UnknownName(f"no command {name!r}", f"one of {', '.join(self.lazy)}", hint, ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        write_lines(
            formatter,
            "Examples",
            (
                "kdpipe run profiles/resnet_to_mobilenet.yaml",
                "kdpipe plan profiles/resnet_to_mobilenet.yaml --set distill.epochs=5",
                "kdpipe doctor",
            ),
        )
        for heading in dict.fromkeys(command.heading for command in self.lazy.values()):
            rows = [(name, entry.summary) for name, entry in self.lazy.items() if entry.heading == heading]
            with formatter.section(heading):
                formatter.write_dl(rows)
        write_options(formatter, ctx, self.get_params(ctx))
        with formatter.section("Environment"):
            formatter.write_dl(list(ENVIRONMENT.items()))
        write_exit_codes(formatter, tuple(EXIT_CODES))

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return `--help`, as a global option."""
        return _under_global_options(super().get_help_option(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the options or the commands that start like this."""
        # The inherited method would import every command for its summary.
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=entry.summary)
            for name, entry in self.lazy.items()
            if name.startswith(incomplete)
        ]


class NestedGroup(Group):
    """A command with subcommands of its own.

    Attributes:
        examples: Some command lines.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        write_lines(formatter, "Examples", self.examples)
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.lazy.items()])
        write_options(formatter, ctx, self.get_params(ctx))


class UnknownName(click.UsageError):
    """An unknown name.

    Attributes:
        expected: The known names, for people.
        hint: What to do; empty if no known name is similar.
    """

    def __init__(self, message: str, expected: str, hint: str, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.expected = expected
        self.hint = hint


def global_options() -> list[click.Parameter]:
    """Return the options that every command takes, before or after its name."""

    def option(*names: str, apply: Callable[[Session, Any], None], **kwargs: Any) -> Option:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
            if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
                apply(ctx.ensure_object(Session), value)

        return Option(names, expose_value=False, callback=callback, heading="Global options", **kwargs)

    return [
        option(
            "-q",
            "--quiet",
            count=True,
            apply=_add_quiet,
            help="Print only results, warnings and errors; -qq: only errors.",
        ),
        option(
            "-v",
            "--verbose",
            count=True,
            apply=_add_verbose,
            help="Print details, and no live progress line.",
        ),
        option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            metavar="WHEN",
            apply=_set_color,
            help="Color the output: auto (on a terminal that shows colors), always or never.",
        ),
        option("--no-progress", is_flag=True, apply=_hide_progress, help="Hide progress."),
        option("--traceback", is_flag=True, apply=_show_traceback, help="Show the traceback of an error."),
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names that are similar; empty if none is."""
    import difflib

    similar = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"did you mean {' or '.join(similar)}?" if similar else ""


def write_options(
    formatter: click.HelpFormatter, ctx: click.Context, params: Sequence[click.Parameter]
) -> None:
    """Write options by heading; the global options are last."""
    headings: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if isinstance(param, click.Argument):
            continue  # it is in the usage line
        record = param.get_help_record(ctx)
        if record is not None:
            headings.setdefault(getattr(param, "heading", "Options"), []).append(record)
    last = headings.pop("Global options", None)
    if last:
        headings["Global options"] = last
    for heading, records in headings.items():
        with formatter.section(heading):
            formatter.write_dl(records)


def write_lines(formatter: click.HelpFormatter, heading: str, lines: Sequence[str]) -> None:
    """Write lines under a heading, without wrapping them."""
    if lines:
        with formatter.section(heading):
            for line in lines:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_exit_codes(formatter: click.HelpFormatter, codes: Sequence[int]) -> None:
    """Write what these exit codes mean."""
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), EXIT_CODES[code]) for code in codes])


def _under_global_options(option: click.Option | None) -> click.Option | None:
    if option is not None:
        option.heading = "Global options"  # type: ignore[attr-defined]
    return option


def _add_quiet(session: Session, value: int) -> None:
    session.console.quiet += value


def _add_verbose(session: Session, value: int) -> None:
    session.console.verbose += value


def _set_color(session: Session, value: str) -> None:
    session.console.color = value


def _hide_progress(session: Session, value: bool) -> None:
    session.console.progress = session.console.progress and not value


def _show_traceback(session: Session, value: bool) -> None:
    session.traceback = value
