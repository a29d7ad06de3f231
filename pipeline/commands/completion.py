"""`kdpipe completion`: print the script with which a shell completes commands, stages and profiles."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from pipeline.commands.base import COMPLETION_VARIABLE, Command
from pipeline.console.session import Session

SHELLS = ("bash", "zsh", "fish")


def _print_script(shell: str) -> None:
    session = click.get_current_context().ensure_object(Session)
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    script = completion_class(click.Command("kdpipe"), {}, "kdpipe", COMPLETION_VARIABLE)
    # Not `script.source()`: it starts bash to read its version.
    session.console.document(ShellComplete.source(script))


completion = Command(
    "completion",
    help="Print the completion script of a shell; load it in the shell's start-up file.",
    params=[click.Argument(["shell"], type=click.Choice(SHELLS), metavar="|".join(SHELLS))],
    callback=_print_script,
    examples=(
        'eval "$(kdpipe completion bash)"    # in ~/.bashrc',
        'eval "$(kdpipe completion zsh)"     # in ~/.zshrc',
        "kdpipe completion fish > ~/.config/fish/completions/kdpipe.fish",
    ),
)
