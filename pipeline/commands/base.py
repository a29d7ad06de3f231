"""Commands and groups with kdpipe's help: grouped options, examples, exit codes, global options.

Imports only click and the standard library, because `--help` must print at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

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
"""The environment variable by which a shell asks for completions."""

EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_STAGE_FAILED: "a stage failed, or kdpipe did",
    EXIT_USAGE: "the command line, the profile or its data are at fault",
    EXIT_GATE_MISSED: "a gate was missed",
    EXIT_MACHINE_CANNOT: "this machine cannot do what is required",
    EXIT_STALE: "`plan --check` found stale stages",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated",
}
EVERY_RUN = (
    EXIT_DONE,
    EXIT_STAGE_FAILED,
    EXIT_USAGE,
    EXIT_GATE_MISSED,
    EXIT_MACHINE_CANNOT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
)
ENVIRONMENT = {
    "KDPIPE_STORE": "the store, where --store is not given",
    "KDPIPE_TRACKING_URI": "the MLflow server, where --track is not given",
    "KDPIPE_LOG": "error, warning, info or debug: as -qq, -q, nothing and -v",
    "KDPIPE_NO_PROGRESS": "as --no-progress",
    "NO_COLOR, FORCE_COLOR": "as --color never and always",
}


class Option(click.Option):
    """An option that stands under a heading of the help."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class Command(click.Command):
    """A command whose help is: one sentence, usage, examples, options by heading, exit codes."""

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
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        write_lines(formatter, "Examples", self.examples)
        self.format_options(ctx, formatter)
        write_exit_codes(formatter, self.exit_codes)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(formatter, ctx, self.get_params(ctx))

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _under_global_options(super().get_help_option(ctx))


class Group(click.Group):
    """The commands by name, each imported when it is called; `add_lazy` fills it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or ()), *global_options()]
        super().__init__(*args, **kwargs)
        self.lazy: dict[str, tuple[str, str, str, str]] = {}

    def add_lazy(self, name: str, target: str, summary: str, heading: str) -> None:
        """A command `name` that lies at `target` ("module:attribute", or "module:function()" for a
        function that makes it of its name)."""
        module, _, attribute = target.partition(":")
        self.lazy[name] = (module, attribute, summary, heading)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, attribute, _, _ = self.lazy[cmd_name]
        found = getattr(importlib.import_module(module), attribute.removesuffix("()"))
        command: click.Command = found(cmd_name) if attribute.endswith("()") else found
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            hint = did_you_mean(name, self.lazy)
            if not hint and name.endswith((".yaml", ".yml")):
                hint = f"kdpipe run {name}"
            raise UnknownName(f"no command {name!r}", f"one of {', '.join(self.lazy)}", hint, ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
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
        for heading in dict.fromkeys(entry[3] for entry in self.lazy.values()):
            with formatter.section(heading):
                rows = [(name, entry[2]) for name, entry in self.lazy.items() if entry[3] == heading]
                formatter.write_dl(rows)
        write_options(formatter, ctx, self.get_params(ctx))
        with formatter.section("Environment"):
            formatter.write_dl(list(ENVIRONMENT.items()))
        write_exit_codes(formatter, tuple(EXIT_CODES))

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _under_global_options(super().get_help_option(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # The inherited one would import every command for its summary.
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=entry[2])
            for name, entry in self.lazy.items()
            if name.startswith(incomplete)
        ]


class Family(Group):
    """A command whose first word names one of several of its own."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        write_lines(formatter, "Examples", self.examples)
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in self.lazy.items()])
        write_options(formatter, ctx, self.get_params(ctx))


class UnknownName(click.UsageError):
    """A name that is none of those there are; `hint` is what to do, `expected` what there is."""

    def __init__(self, message: str, expected: str, hint: str, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.expected = expected
        self.hint = hint


def global_options() -> list[click.Parameter]:
    """The options that every command takes, before or after its name."""

    def option(*names: str, keep: Callable[[Session, Any], None], **kwargs: Any) -> Option:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
            if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
                keep(ctx.ensure_object(Session), value)

        return Option(names, expose_value=False, callback=callback, heading="Global options", **kwargs)

    return [
        option(
            "-q",
            "--quiet",
            count=True,
            keep=_add_quiet,
            help="Print only results, warnings and errors; -qq: only errors.",
        ),
        option(
            "-v",
            "--verbose",
            count=True,
            keep=_add_verbose,
            help="Say more, and draw no live line.",
        ),
        option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            metavar="WHEN",
            keep=_set_color,
            help="auto (where a terminal shows it), always or never.",
        ),
        option("--no-progress", is_flag=True, keep=_hide_progress, help="Hide progress."),
        option("--traceback", is_flag=True, keep=_show_traceback, help="Show where an error comes from."),
    ]


def did_you_mean(name: str, known: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def write_options(
    formatter: click.HelpFormatter, ctx: click.Context, params: Sequence[click.Parameter]
) -> None:
    headings: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if isinstance(param, click.Argument):
            continue  # stands in the usage line
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
    if lines:
        with formatter.section(heading):
            for line in lines:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_exit_codes(formatter: click.HelpFormatter, codes: Sequence[int]) -> None:
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
