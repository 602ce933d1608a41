"""Asking a person: whether to destroy something, and for a password."""

from pathlib import Path
from typing import Annotated

import typer

from mqtool.cli.access import read_password
from mqtool.cli.display import output
from mqtool.errors import MqtoolError, UsageError

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation")]


def ask(what: str, *, yes: bool, hint: str = "say --yes") -> None:
    """Ask a person before something that cannot be undone; a script has to pass --yes.

    Args:
        what: what would be done, such as "delete queue 'jobs'".
        yes: do not ask.

    Raises:
        UsageError: nobody can be asked.
        MqtoolError: the answer was no.
    """
    if yes:
        return
    if not output.is_terminal(0):
        raise UsageError(f"this would {what}", hint)
    if not typer.confirm(output.visible(f"{what}?"), err=True):
        raise MqtoolError("nothing was changed")


def ask_password(of: str, path: Path | None) -> str:
    """A new password: from a file (`-` is stdin), else typed twice by a person.

    Args:
        of: the user.

    Raises:
        UsageError: nobody can be asked, or it is empty.
    """
    if path is not None:
        password = read_password(path)
    elif output.is_terminal(0):
        prompt = output.visible(f"Password of {of}")
        password = typer.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise UsageError(
            f"there is no password for {of}, and no terminal to ask on",
            "--password-file FILE, or - to read it from stdin",
        )
    if not password:
        raise UsageError("the password is empty", "give one that is not")
    return str(password)
