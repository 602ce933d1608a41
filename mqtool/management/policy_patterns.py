"""Which queues and exchanges a policy applies to."""

import re

import re2

from mqtool.management.api_client import Json


def policy_matches(policy: Json, name: str) -> bool | None:
    """True if a policy's pattern matches a queue's or exchange's name; None if only Erlang can parse the pattern.

    RE2 matches in linear time. Python's own engine, which a pattern such as `(a+)+$` would block for ever, is used only
    for what RE2 does not support: lookaround and backreferences.
    """
    options = re2.Options()
    options.log_errors = False
    pattern: str = policy.get("pattern") or ""
    data, text = (each.encode(errors="surrogatepass") for each in (pattern, name))
    try:
        return re2.search(data, text, options) is not None
    except re2.error:
        pass
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return None
