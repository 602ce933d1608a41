"""Asking a person: whether to destroy something, and for a password."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Option

from mqtool.cli.access import read_password
from mqtool.cli.display import output
from mqtool.errors import MqtoolError, NotFound, UsageError


class Yes(NamedTuple):
    """What was agreed to on the command line."""

    yes: Annotated[bool, Option("-y", help="Do not ask (a protected context: --yes=NAME)")] = False
    #: What --yes=NAME becomes.
    yes_to: Annotated[str | None, Option(metavar="NAME", hidden=True)] = None


IfExists = Annotated[bool, Option("--if-exists", help="Succeed if it does not exist")]


def ask(what: str, yes: Yes, *, protected: str | None, is_safe: bool = False, hint: str = "say --yes") -> None:
    """Ask a person before something that cannot be undone; a script has to pass --yes.

    Args:
        what: what would be done, such as "delete queue 'jobs'".
        protected: of the Access: the context that only --yes=NAME changes unasked.
        is_safe: nobody is asked, unless the context is protected.

    Raises:
        UsageError: nobody can be asked, or --yes names another context.
        MqtoolError: the answer was no.
    """
    if yes.yes_to is not None and yes.yes_to != protected:
        other = f"the context is {protected!r}" if protected else "the broker is not a protected context"
        raise UsageError(f"--yes={yes.yes_to} was given, but {other}", "nothing was changed")
    if yes.yes_to is not None or (protected is None and (yes.yes or is_safe)):
        return
    if protected is not None:
        what, hint = f"{what} in the protected context {protected!r}", f"pass --yes={protected}"
    if not output.is_terminal(0):
        raise UsageError(f"this would {what}", hint)
    if not typer.confirm(output.visible(f"{what}?"), err=True):
        raise MqtoolError("nothing was changed")


def missing(what: str, hint: str, *, is_fine: bool) -> None:
    """Say that something does not exist.

    Raises:
        NotFound: and that is not fine.
    """
    if not is_fine:
        raise NotFound(f"there is no {what}", hint)
    output.status(f"there is no {what}")


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
