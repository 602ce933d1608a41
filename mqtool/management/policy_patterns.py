"""The patterns of policies and permissions: which names they match."""

import re
from functools import lru_cache
from typing import Any

import re2

from mqtool.management.api_client import Json


def policy_matches(policy: Json, name: str) -> bool | None:
    """True if a policy's pattern matches a queue's or exchange's name; None if only Erlang can parse the pattern."""
    return pattern_matches(policy.get("pattern") or "", name)


def pattern_matches(pattern: str, name: str) -> bool | None:
    """True if the pattern of a policy or of a permission matches a name; None if only Erlang can parse the pattern.

    RE2 matches in linear time. Python's own engine, which a pattern such as `(a+)+$` would block for ever, is used only
    for what RE2 does not support: lookaround and backreferences.
    """
    compiled = _compiled(pattern)
    if compiled is not None:
        return compiled.search(name.encode(errors="surrogatepass")) is not None
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    """Return RE2's compiled pattern; None if RE2 cannot parse it."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern.encode(errors="surrogatepass"), options)
    except re2.error:
        return None
