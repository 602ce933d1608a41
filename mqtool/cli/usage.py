"""What is wrong with a command line: one sentence, and the name that was probably meant."""

import re
from typing import Any

import typer

from mqtool.spelling import did_you_mean


def explain(error: typer.TyperException) -> tuple[str, str | None]:
    """A sentence and a hint for what typer says of a command line."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "mqtool"
    how = f"'{path} --help' shows how it is written"
    text = error.message.partition(" Did you mean ")[0].rstrip(".")
    if unknown := re.fullmatch(r"No such command '(.*)'", text, re.DOTALL):
        commands = context.command.list_commands(context)
        hint = did_you_mean(unknown[1], commands, f"'{path} --help' lists the commands")
        return f"there is no command '{path} {unknown[1]}'", hint
    option = getattr(error, "option_name", None)
    if option is not None and text.startswith("No such option"):
        option = option.replace("--yes-to", "--yes")  # as it was typed, see app.py
        flags = [flag for parameter in context.command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
        return f"there is no option {option}", did_you_mean(option, flags, f"'{path} --help-all' lists the options")
    what = error.format_message().rstrip(".")
    wrong, _, choices = what.rpartition(" is not one of ")
    typed = re.search(r"'([^']*)'$", wrong)
    return what, did_you_mean(typed[1], re.findall(r"'([^']*)'", choices), how) if typed else how
