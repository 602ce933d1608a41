"""An exchange that somebody may have meant who published to another."""

import difflib
import re
from typing import NamedTuple

from mqtool import management
from mqtool.management import Management
from mqtool.topology import Exchange


class Neighbour(NamedTuple):
    """An exchange of a similar name, and how many bindings it has."""

    name: str
    bindings: int


def bound_neighbour(api: Management, vhost: str, exchange: Exchange) -> Neighbour | None:
    """The exchange of the same type with the nearest name that has bindings; None if there is none.

    Raises:
        Unavailable, NotFound, AccessRefused: the API cannot tell.
    """
    by_words: dict[str, list[str]] = {}
    for view in management.exchanges(api, vhost, ("name", "type")):
        if view["type"] == exchange.type and view["name"] not in ("", exchange.name):
            by_words.setdefault(_in_order(view["name"]), []).append(view["name"])
    for words in difflib.get_close_matches(_in_order(exchange.name), by_words):
        for name in by_words[words]:
            if bindings := sum(1 for _ in management.bindings_from(api, vhost, name, ("routing_key",))):
                return Neighbour(name, bindings)
    return None


def _in_order(name: str) -> str:
    """The name's words in alphabetical order: logs_direct is as near to direct_logs as can be."""
    return " ".join(sorted(re.split(r"[^a-z0-9]+", name.casefold())))
