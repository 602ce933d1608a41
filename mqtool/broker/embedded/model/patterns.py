"""Users' regular expressions, matched in linear time so that none of them can stop the broker.

RE2 has no lookaround and no back-references; everything else is as in Perl.
"""

import logging
from functools import lru_cache
from typing import Any

log = logging.getLogger("mqtool.broker.embedded")

_EVERYTHING = ".*"


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    # Imported here: hardly any broker has a pattern but `.*`.
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern.encode(errors="surrogateescape"), options)
    except re2.error as error:
        reason = error.args[0]
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error


def check_pattern(pattern: str) -> None:
    """Check a regular expression.

    Raises:
        ValueError: it is not valid, or it needs backtracking.
    """
    if pattern != _EVERYTHING:
        _compiled(pattern)


def found(pattern: str, text: str) -> bool:
    """Whether a regular expression matches anywhere in a text.

    Raises:
        ValueError: it is not valid, or it needs backtracking.
    """
    return pattern == _EVERYTHING or _compiled(pattern).search(text.encode(errors="surrogateescape")) is not None
