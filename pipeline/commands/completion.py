"""`kdpipe completion`: the script that makes a shell complete commands, stages and profiles."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from pipeline.commands.base import COMPLETION_VARIABLE, Command
from pipeline.console.session import Session

SHELLS = ("bash", "zsh", "fish")


def _print(shell: str) -> None:
    session = click.get_current_context().ensure_object(Session)
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(click.Command("kdpipe"), {}, "kdpipe", COMPLETION_VARIABLE)
    # Not `script.source()`: for bash that starts a bash to ask its version.
    session.console.document(ShellComplete.source(script))


completion = Command(
    "completion",
    help="Print the completion script of a shell, to be read by its start-up file.",
    params=[click.Argument(["shell"], type=click.Choice(SHELLS), metavar="|".join(SHELLS))],
    callback=_print,
    examples=(
        'eval "$(kdpipe completion bash)"    # in ~/.bashrc',
        'eval "$(kdpipe completion zsh)"     # in ~/.zshrc',
        "kdpipe completion fish > ~/.config/fish/completions/kdpipe.fish",
    ),
)
