"""mqtool completion."""

from typing import Annotated

import typer

from mqtool.cli.command_line import command
from mqtool.cli.completion import Shell
from mqtool.cli.completion import script as completion_script
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output

app = typer.Typer()


@command(
    app,
    'eval "$(mqtool completion bash)"',
    "mqtool completion fish > ~/.config/fish/completions/mqtool.fish",
    effect=Effect.NONE,
    heading="Learn",
)
def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish")]) -> None:
    """Print the completion script for your shell.

    Add this line to ~/.bashrc: eval "$(mqtool completion bash)". For zsh, write zsh instead of bash, and add the line
    to ~/.zshrc, after compinit. The script completes commands, options, and the names of queues and exchanges on the
    broker.
    """
    output.show(completion_script(shell))
