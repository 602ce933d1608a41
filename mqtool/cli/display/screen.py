"""rich's console, made to heed what output.py heeds."""

from rich.console import Console


def console(
    *, no_color: bool = False, at_most: int | None = None, on_stderr: bool = False, quiet: bool = False
) -> Console:
    """A console that prints what it is given, without guessing at markup; limited to this width."""
    made = Console(highlight=False, markup=False, emoji=False, no_color=no_color or None, stderr=on_stderr, quiet=quiet)
    if at_most is not None and made.width > at_most:
        made.width = at_most
    return made
