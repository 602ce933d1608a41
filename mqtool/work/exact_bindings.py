"""Bindings with the exact types of their arguments, which the management API does not show.

RabbitMQ's API shows a void argument like the string "undefined", a timestamp like a number, and bytes like text. Made
again from that, a binding could match other messages, and its client could not remove it. But the API also shows each
binding's properties_key, which ends with a hash of the typed arguments. The hash function is the broker's own. So a
queue of ours is bound with the types that most clients send, and the hashes are compared.
"""

import json
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import product
from typing import Any
from urllib.parse import unquote_plus

from mqtool.amqp import Channel, administration
from mqtool.codecs.field_tables import CLIENT, Int64
from mqtool.delays.destinations import derived_name
from mqtool.errors import Unavailable
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.topology import Binding, Exchange, Queue
from mqtool.work.conversion_plan import beginning

#: The type of all integers: 32 bits or, if larger, 64 bits, as pika sends them; or 64 bits, like Java's `long`. And the
#: string that means void, if any.
_GUESSES: Sequence[tuple[Callable[[int], int], str | None]] = [*product((int, Int64), ("undefined", None))]
#: The most bytes of arguments to try, as JSON: anybody who may bind a queue can write any number, and trials copy them.
_LARGEST = 8192
#: How many bindings to try at once: at most 400 kB of arguments, each in at most four ways.
_AT_ONCE = 50
#: Seconds to wait until the API shows new bindings: in a cluster, another node may answer.
_PATIENCE, _LOOK = 5.0, 0.05

#: A binding's arguments as the API shows them, as JSON, and their hash.
_Shown = tuple[str, str]


class ExactBindings:
    """Finds out the exact arguments of bindings, and remembers them.

    Args:
        queue: the queue that is converted. Trials use an exchange and an exclusive queue with random names after it.
        check: called before each request of a trial; may raise an error.
    """

    def __init__(
        self, channel: Channel, api: Management, vhost: str, queue: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost
        self._queue = queue
        self._check = check
        #: None for arguments that cannot be found out.
        self._arguments: dict[_Shown, Mapping[str, Any] | None] = {("{}", ""): {}}

    def of(self, views: Sequence[Json]) -> Iterator[tuple[Json, Binding | None]]:
        """Yield each binding that the management API describes, after its description; None if it cannot be made again.

        Raises:
            Unavailable: the API does not show new bindings.
            MqtoolError: the user may not declare or bind the trial queue.
        """
        for start in range(0, len(views), _AT_ONCE):
            batch = views[start : start + _AT_ONCE]
            tables = dict[bytes, dict[str, Any]]()
            for view in batch:
                if _shown(view) not in self._arguments and not is_large(view):
                    tables |= _tables(view["arguments"])
            if tables:
                self._try([*tables.values()])
            for view in batch:
                yield view, _binding(view, self._arguments.setdefault(_shown(view), None))

    def _try(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Bind a queue with each of these arguments, and remember the hash of each."""
        self._check()
        channel, name = self._channel, derived_name(self._queue, f"mqtool-convert.trial.{secrets.token_hex(4)}")
        with ExitStack() as trial:
            channel.declare(Queue(name, exclusive=True), remember=False)
            trial.callback(administration.delete_queue, channel, name)
            channel.declare(Exchange(name, "fanout", auto_delete=True), remember=False)
            trial.callback(administration.delete_exchange, channel, name)
            for index, table in enumerate(tables):
                self._check()
                # The routing key tells which binding it is, and does not change the hash.
                administration.bind(channel, Binding(name, name, str(index), table))
            for view in self._shown_soon(name, len(tables)):
                self._arguments[_shown(view)] = tables[int(view["routing_key"])]

    def _shown_soon(self, name: str, count: int) -> list[Json]:
        """Wait until the API shows all bindings between the exchange and the queue with this name; return them."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            views = [*self._api.items(path("bindings", self._vhost, "e", name, "q", name))]
            if len(views) == count:
                return views
            if time.monotonic() > deadline:
                raise Unavailable("the management API does not show new bindings", "try again later")
            self._check()
            time.sleep(_LOOK)


def described(view: Json) -> str:
    """Describe a binding in words: its exchange, routing key and arguments."""
    arguments = view.get("arguments")
    shown = f", {beginning(json.dumps(arguments, ensure_ascii=False))}" if arguments else ""
    return f"from {view['source']!r} ({view['routing_key']!r}{shown})"


def is_large(view: Json) -> bool:
    """True if a binding's arguments are too large to be tried."""
    return len(_shown(view)[0]) > _LARGEST


def _shown(view: Json) -> _Shown:
    arguments = view.get("arguments") or {}
    return json.dumps(arguments, sort_keys=True), view["properties_key"].rpartition("~")[2] if arguments else ""


def _key(view: Json) -> str:
    """Return the routing key that is part of the properties_key. Bytes that are not UTF-8 are replaced."""
    key: str = view["properties_key"]
    return unquote_plus(key.rpartition("~")[0] if view.get("arguments") or key == "~" else key)


def _binding(view: Json, arguments: Mapping[str, Any] | None) -> Binding | None:
    if arguments is None or _key(view) != view["routing_key"]:
        return None
    to_exchange = view["destination_type"] == "exchange"
    return Binding(view["source"], view["destination"], view["routing_key"], arguments, to_exchange)


def _tables(shown: Mapping[str, Any]) -> dict[bytes, dict[str, Any]]:
    """Return the different tables that the API may show like this, by their encodings."""
    found = dict[bytes, dict[str, Any]]()
    for integer, void in _GUESSES:
        table = {name: _typed(value, integer, void) for name, value in shown.items()}
        with suppress(ValueError, struct.error):  # such as an integer of more than 64 bits
            found[CLIENT.encode_table(table)] = table
    return found


def _typed(shown: Any, integer: Callable[[int], int], void: str | None) -> Any:
    match shown:
        case bool():
            return shown
        case int():
            return integer(shown)
        case list():
            return [_typed(each, integer, void) for each in shown]
        case dict():
            return {name: _typed(each, integer, void) for name, each in shown.items()}
        case _:  # a string that describes bytes may also be meant literally
            return None if shown == void else shown
