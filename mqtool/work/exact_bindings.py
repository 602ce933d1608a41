"""Bindings with the exact types of their arguments, which the management API does not show.

RabbitMQ's API shows a void argument like the string "undefined", a timestamp like a number, and bytes like text. Made
again from that, a binding could match other messages, and its client could not remove it. But the API also shows each
binding's properties_key, which ends with a hash of the typed arguments. The hash function is the broker's own. So the
few likely combinations of types are tried: a queue of ours is bound with each of them, and the hashes are compared.
"""

import json
import secrets
import struct
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

from mqtool.amqp import Channel, administration
from mqtool.codecs import field_tables as types
from mqtool.delays.destinations import derived_name
from mqtool.errors import Unavailable
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.topology import Binding, Exchange, Queue

#: What RabbitMQ's API shows for a void value; and, followed by base64, for strings and bytes that are not UTF-8.
_VOID, _NOT_UTF8 = "undefined", "Not UTF-8, base64 is: "
_X_MATCH = "x-match"
#: The most bytes of arguments to try, as JSON: anybody who may bind a queue can write any number, and trials copy them.
_LARGEST = 8192
#: The most guesses to try for one binding.
_MOST = 32
#: Seconds to wait until the API shows new bindings: in a cluster, another node may answer.
_PATIENCE, _LOOK = 5.0, 0.05


class _Types(NamedTuple):
    """One guess: how the API's values get their types. It is the same way for all values of a table.

    Attributes:
        integer: gives an integer its type.
        real: gives another number its type.
        is_void: True if "undefined" is void.
        text: the type of the strings, except for that of x-match.
        raw: the meaning of a string that describes bytes which are not UTF-8.
    """

    integer: Callable[[int], int]
    real: Callable[[float], float]
    is_void: bool
    text: Callable[[str], Any]
    raw: Callable[[str], Any]


def _as_bytes(text: str) -> types.ByteArray:
    return types.ByteArray(text.encode("utf-8", "surrogatepass"))


def _decoded(shown: str) -> bytes:
    return b64decode(shown.removeprefix(_NOT_UTF8), validate=True)


def _as_text(shown: str) -> str:
    return _decoded(shown).decode("utf-8", "surrogateescape")


def _int32_or_larger(number: int) -> int:
    """Return the number with the type that pika and mqtool send."""
    return types.Int32(number) if -(2**31) <= number < 2**31 else types.Int64(number)


def _smallest(number: int) -> int:
    """Return the number with the smallest signed type, which other clients may send."""
    sizes = ((types.Int8, 2**7), (types.Int16, 2**15), (types.Int32, 2**31))
    return next((of_type(number) for of_type, limit in sizes if -limit <= number < limit), types.Int64(number))


_INTEGERS: Sequence[Callable[[int], int]] = (
    *(_int32_or_larger, types.Int64, types.Timestamp, _smallest),
    *(types.Int16, types.Int8, types.UInt8, types.UInt16, types.UInt32),
)
_TEXTS: Sequence[Callable[[str], Any]] = (str, _as_bytes)
_RAWS: Sequence[Callable[[str], Any]] = (lambda shown: types.ByteArray(_decoded(shown)), _as_text, str)
#: All guesses, the most likely first.
_GUESSES = [_Types(*each) for each in product(_INTEGERS, (float, types.Float32), (True, False), _TEXTS, _RAWS)]


class ExactBindings:
    """Finds out the exact arguments of bindings, and remembers them.

    Args:
        queue: the queue that is converted. Trials use an exchange and an exclusive queue with random names after it.
        check: called before each trial; may raise an error.
    """

    def __init__(
        self, channel: Channel, api: Management, vhost: str, queue: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost
        self._queue = queue
        self._check = check
        #: By the arguments that the API shows, and their hash.
        self._arguments: dict[tuple[str, str], Mapping[str, Any]] = {("{}", ""): {}}

    def of(self, views: Sequence[Json]) -> list[Binding | None]:
        """Return the bindings that the management API describes; None for each that cannot be made again exactly.

        Raises:
            Unavailable: the API does not show new bindings.
            MqtoolError: the user may not declare or bind the trial queue.
        """
        guesses = {
            shown: islice(_tables(view["arguments"]), _MOST)
            for view in views
            if (shown := _shown(view)) not in self._arguments and not is_large(view)
        }
        while guesses:
            tried = {shown: table for shown, tables in guesses.items() if (table := next(tables, None)) is not None}
            if tried:
                self._try([*tried.values()])
            guesses = {shown: guesses[shown] for shown in tried.keys() - self._arguments.keys()}
        return [self._exact(view) for view in views]

    def _exact(self, view: Json) -> Binding | None:
        arguments = self._arguments.get(_shown(view))
        if arguments is None or _key(view) != view["routing_key"]:
            return None
        to_exchange = view["destination_type"] == "exchange"
        return Binding(view["source"], view["destination"], view["routing_key"], arguments, to_exchange)

    def _try(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Bind a queue with each of these arguments, and remember the hash of each."""
        self._check()
        channel, name = self._channel, derived_name(self._queue, f"mqtool-convert.trial.{secrets.token_hex(4)}")
        channel.declare(Queue(name, exclusive=True), remember=False)
        try:
            channel.declare(Exchange(name, "fanout", auto_delete=True), remember=False)
            try:
                for index, table in enumerate(tables):
                    # The routing key tells which binding it is, and does not change the hash.
                    administration.bind(channel, Binding(name, name, str(index), table))
                for view in self._shown_soon(name, len(tables)):
                    self._arguments[_shown(view)] = tables[int(view["routing_key"])]
            finally:
                administration.delete_exchange(channel, name)
        finally:
            administration.delete_queue(channel, name)

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


def is_large(view: Json) -> bool:
    """True if a binding's arguments are too large to be tried."""
    return len(_shown(view)[0]) > _LARGEST


def _shown(view: Json) -> tuple[str, str]:
    arguments = view.get("arguments") or {}
    return json.dumps(arguments, sort_keys=True), view["properties_key"].rpartition("~")[2] if arguments else ""


def _key(view: Json) -> str:
    """Return the routing key that is part of the properties_key. Bytes that are not UTF-8 are replaced."""
    key: str = view["properties_key"]
    return unquote_plus(key.rpartition("~")[0] if view.get("arguments") or key == "~" else key)


def _tables(shown: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the different tables that the API may show like this."""
    known = set[bytes]()
    for guess in _GUESSES:
        try:
            table = {name: value if name == _X_MATCH else _value(value, guess) for name, value in shown.items()}
            encoded = types.CLIENT.encode_table(table)
        except (ValueError, OverflowError, struct.error, types.NoFieldType):  # it cannot be meant
            continue
        if encoded not in known:
            known.add(encoded)
            yield table


def _value(shown: Any, guess: _Types) -> Any:
    match shown:
        case bool() | None:
            return shown
        case int():
            return guess.integer(shown)
        case float():
            return guess.real(shown)
        case list():
            return [_value(each, guess) for each in shown]
        case dict():
            return {name: _value(each, guess) for name, each in shown.items()}
        case str() if shown == _VOID and guess.is_void:
            return None
        case str() if shown.startswith(_NOT_UTF8):
            return guess.raw(shown)
        case _:
            return guess.text(shown)
