"""The patterns of policies and permissions: which names they match."""

import re
import warnings
from functools import lru_cache
from typing import Any

import re2

from mqtool.errors import UsageError
from mqtool.management.api_client import Json

#: Escaped characters and character classes; groups that match in one way only; repetitions; choices.
_CHARACTER = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]", re.DOTALL)
_PLAIN_GROUP = re.compile(r"\((?:\?<?[:=!])?[^()*+?{|]*\)")
_REPETITION, _CHOICE, _REPEATED_GROUP = re.compile("[*+{]"), re.compile("[?|]"), re.compile(r"\)[*+?{]")
#: Comments, and the flag that allows them, could hide the rest of a pattern.
_COMMENT = re.compile(r"\(\?(?:#|[a-zA-Z]*x)")
#: A name has up to 2⁸ characters. Python's engine takes at most some seconds for 2²⁸ ways to match one.
_BITS_OF_LENGTH, _MOST_BITS = 8, 28
#: The maximum number of patterns to keep compiled. Each queue's name is matched with all policies' patterns in turn, so
#: with more patterns than this, each is compiled again for each queue, and matching takes five times as long. 4,000
#: patterns take some 10 MB.
_KEPT = 4096


#: Errors of Python's engine for patterns that PCRE, RabbitMQ's engine, refuses, too.
_SURE_ERRORS = ("unterminated character set", "missing ), unterminated subpattern", "unbalanced parenthesis")


def check_pattern(pattern: str) -> None:
    """Raise UsageError if the broker surely refuses a pattern. It knows more syntax than Python's engine does."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python warns of [[:alpha:]]
            re.compile(pattern)
    except re.error as error:
        if error.msg in _SURE_ERRORS or (error.msg == "nothing to repeat" and error.pos == 0):
            wrong = f"{pattern!r} is not a valid regular expression: {error}"
            raise UsageError(wrong, "'.*' matches everything") from error
    except (OverflowError, RecursionError):
        return


def policy_matches(policy: Json, name: str) -> bool | None:
    """True if a policy's pattern matches a queue's or exchange's name; None as for pattern_matches()."""
    return pattern_matches(policy.get("pattern") or "", name)


def pattern_matches(pattern: str, name: str) -> bool | None:
    """True if the pattern of a policy or of a permission matches a name; None if mqtool cannot tell.

    RE2 matches in linear time. It does not support lookaround and backreferences. Patterns with these are matched by
    Python's own engine, unless that could take very long: users other than the administrator may write patterns.
    """
    compiled = _compiled(pattern)
    if compiled is not None:
        return compiled.search(name.encode(errors="surrogatepass")) is not None
    if not _is_quick(pattern):
        return None
    try:
        return re.search(pattern, name) is not None
    except (re.error, OverflowError, RecursionError):
        return None


@lru_cache(maxsize=_KEPT)
def _is_quick(pattern: str) -> bool:
    """True if Python's engine needs at most seconds to match a name, however the name is chosen."""
    rest, before = _CHARACTER.sub("x", pattern), ""
    while rest != before:
        rest, before = _PLAIN_GROUP.sub("x", rest), rest
    starts = 0 if pattern.startswith("^") else 1
    bits = _BITS_OF_LENGTH * (starts + len(_REPETITION.findall(rest))) + len(_CHOICE.findall(rest))
    return bits <= _MOST_BITS and not _REPEATED_GROUP.search(rest) and not _COMMENT.search(pattern)


@lru_cache(maxsize=_KEPT)
def _compiled(pattern: str) -> Any:
    """Return RE2's compiled pattern; None if RE2 cannot parse it."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern.encode(errors="surrogatepass"), options)
    except re2.error:
        return None
