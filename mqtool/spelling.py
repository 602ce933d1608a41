"""Names that somebody has probably meant: for hints."""

import difflib
from collections.abc import Iterable

#: What people know from other tools, and what it may be called here.
_SYNONYMS = {
    "start": ("up",),
    "stop": ("down",),
    "create": ("declare", "add", "enable"),
    "add": ("declare",),
    "remove": ("delete", "drop"),
    "rm": ("delete", "drop"),
    "ls": ("list",),
    "list": ("ls",),
    "publish": ("send",),
    "pub": ("send",),
    "consume": ("receive",),
    "sub": ("receive",),
    "retry": ("redrive",),
    "empty": ("purge",),
}


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that somebody who typed this word probably meant; None if nothing is near."""
    known = list(names)
    for meant in _SYNONYMS.get(word, ()):
        if meant in known:
            return meant
    others = {synonym: meant for synonym, names in _SYNONYMS.items() for meant in names if meant in known}
    close = [each for those in (known, others) for each in difflib.get_close_matches(word, those, n=1)]
    return others.get(close[0], close[0]) if close else None


def did_you_mean(word: str, names: Iterable[str], otherwise: str | None = None) -> str | None:
    """A hint with the nearest name; without one, another hint."""
    meant = nearest(word, names)
    return otherwise if meant is None else f"did you mean {meant!r}?"
