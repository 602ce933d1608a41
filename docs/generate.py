"""Writes docs/commands.md from the commands themselves: make docs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from mqtool.cli.app import app

REFERENCE = Path(__file__).parent / "commands.md"


def reference() -> str:
    """Every command with its options, as --help tells them, in Markdown."""
    command: Any = typer.main.get_command(app)
    context: Any = typer.Context(command, info_name="mqtool")
    text = get_docs_for_click(obj=command, ctx=context, name="mqtool", title="The commands of mqtool")
    for epilog in _epilogs(command):
        examples = "\n".join(f"$ {line}" for line in epilog.split("  ·  "))
        text = text.replace(f"\n\n{epilog}\n", f"\n\n**Examples**:\n\n```console\n{examples}\n```\n")
    return f"{text.strip()}\n"


def _epilogs(group: Any) -> Iterator[str]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from _epilogs(command)
        if command.epilog:
            yield command.epilog


if __name__ == "__main__":
    REFERENCE.write_text(reference())
