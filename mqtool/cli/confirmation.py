"""Ask for confirmation of a change to a broker."""

import typer

from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.errors import MqtoolError, UsageError
from mqtool.spelling import quoted


class Declined(MqtoolError):
    """The user declined a change."""


def ask(
    what: str, access: Access | None = None, *, yes: bool = False, is_safe: bool = False, hint: str = "pass --yes"
) -> None:
    """Ask for confirmation of a change that cannot be undone, or of any change in a protected context.

    Args:
        what: the change, such as "delete queue 'jobs'".
        access: the broker to change; None for a broker that mqtool started.
        yes: True if --yes was given, which is not enough in a protected context.
        is_safe: True to ask only in a protected context.
        hint: what to do if there is no terminal to ask on.

    Raises:
        UsageError: stdin is not a terminal, or --confirm names another context.
        Declined: the user declined.
    """
    protected, confirmed = (access.protected, access.confirmed) if access else (None, ())
    if confirmed and protected not in confirmed:
        other = f"the context is {protected!r}" if protected else "the broker is not a protected context"
        raise UsageError(f"--confirm {confirmed[0]} was given, but {other}", "nothing was changed")
    if confirmed or (protected is None and (yes or is_safe)):
        return
    if protected is not None:
        what, hint = f"{what} in the protected context {protected!r}", f"pass --confirm {quoted(protected)}"
    if not output.is_terminal(0):
        raise UsageError(f"this would {what}", hint)
    if not agrees(output.visible(f"{what}?")):
        raise Declined("nothing was changed")


def agrees(question: str) -> bool:
    """Ask a question on the terminal.

    Raises:
        Declined: Ctrl-C or Ctrl-D. Commands then say what they had done before, as if the answer was no, and exit with
            130.
    """
    with stopping.interrupting():
        try:
            return typer.confirm(question, err=True)
        except typer.Abort:
            if stopping.requested() is None:
                typer.echo(err=True)  # ends the line of the question; Ctrl-D does not
            raise Declined("nothing was changed")  # noqa: B904 (its context says that there was no answer)
