"""Bindings with the exact types of their arguments, which the management API does not show.

RabbitMQ's API shows a void argument like the string "undefined", a timestamp like a number, and bytes like text. Made
again from that, a binding would match other messages, and its client could not remove it. But the API also shows each
binding's properties_key, which ends with a hash of the typed arguments. The hash function is the broker's own. So the
arguments that can be meant are tried: a queue of ours is bound with each of them, and the hashes are compared.
"""

import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any
from urllib.parse import unquote_plus

from mqtool.amqp import Channel, administration
from mqtool.codecs import field_tables as types
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.topology import Binding, Exchange, Queue

#: What RabbitMQ's API shows for a void value; and, followed by base64, for strings and bytes that are not UTF-8.
_VOID, _NOT_UTF8 = "undefined", "Not UTF-8, base64 is: "
#: The types that the API shows as integers, the most frequent first, each with its least and its greatest value.
_INTEGERS: Sequence[tuple[Callable[[int], int], int, int]] = (
    (types.Int32, -(2**31), 2**31 - 1),
    (types.Int64, -(2**63), 2**63 - 1),
    (types.Timestamp, 0, 2**64 - 1),
    (types.Int16, -(2**15), 2**15 - 1),
    (types.Int8, -(2**7), 2**7 - 1),
    (types.UInt8, 0, 2**8 - 1),
    (types.UInt16, 0, 2**16 - 1),
    (types.UInt32, 0, 2**32 - 1),
)
_GREATEST_FLOAT32 = 3.4e38
#: The maximum number of combinations of types to try for one binding.
_MOST = 1000
#: Seconds to wait until the API shows new bindings: in a cluster, another node may answer.
_PATIENCE, _LOOK = 5.0, 0.05


class ExactBindings:
    """Finds out the exact arguments of bindings, and remembers them.

    Args:
        trial: the name of a queue and of an exchange to declare for a moment.
    """

    def __init__(self, channel: Channel, api: Management, vhost: str, trial: str) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost
        self._trial = trial
        #: By the arguments that the API shows, and their hash.
        self._arguments: dict[tuple[str, str], Mapping[str, Any]] = {("{}", ""): {}}

    def of(self, views: Sequence[Json]) -> list[Binding | None]:
        """Return the bindings that the management API describes; None for each that cannot be made again exactly.

        Raises:
            MqtoolError: the user may not declare the trial queue, or another connection uses it.
        """
        unknown = {_shown(view): view for view in views if _shown(view) not in self._arguments}
        if unknown:
            self._try(unknown)
        return [self._exact(view) for view in views]

    def _exact(self, view: Json) -> Binding | None:
        arguments = self._arguments.get(_shown(view))
        if arguments is None or _key(view) != view["routing_key"]:
            return None
        to_exchange = view["destination_type"] == "exchange"
        return Binding(view["source"], view["destination"], view["routing_key"], arguments, to_exchange)

    def _try(self, unknown: Mapping[tuple[str, str], Json]) -> None:
        channel, name = self._channel, self._trial
        channel.declare(Queue(name, exclusive=True), remember=False)
        try:
            channel.declare(Exchange(name, "fanout", auto_delete=True), remember=False)
            untried = {shown: _tables(view["arguments"]) for shown, view in unknown.items()}
            tried: list[Mapping[str, Any]] = []
            for most in (1, _MOST):  # the first is nearly always right
                for shown in untried.keys() - self._arguments.keys():
                    for arguments in islice(untried[shown], most):
                        # The routing key tells which binding it is, and does not change the hash.
                        administration.bind(channel, Binding(name, name, str(len(tried)), arguments))
                        tried.append(arguments)
                self._learn(tried)
        finally:
            administration.delete_exchange(channel, name)
            administration.delete_queue(channel, name)

    def _learn(self, tried: Sequence[Mapping[str, Any]]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            shown = self._api.items(path("queues", self._vhost, self._trial, "bindings"))
            views = [each for each in shown if each["source"]]  # not the one to the default exchange
            if len(views) >= len(tried) or time.monotonic() > deadline:
                break
            time.sleep(_LOOK)
        for view in views:
            self._arguments[_shown(view)] = tried[int(view["routing_key"])]


def _shown(view: Json) -> tuple[str, str]:
    arguments = view.get("arguments") or {}
    return json.dumps(arguments, sort_keys=True), view["properties_key"].rpartition("~")[2] if arguments else ""


def _key(view: Json) -> str:
    """Return the routing key that is part of the properties_key. Bytes that are not UTF-8 are replaced."""
    key: str = view["properties_key"]
    return unquote_plus(key.rpartition("~")[0] if view.get("arguments") or key == "~" else key)


def _tables(shown: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tables that the API shows like this, those with the most frequent types first."""
    for values in _combinations([_values(each) for each in shown.values()]):
        yield dict(zip(shown, values, strict=True))


def _combinations(choices: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    for count in range(1, max(map(len, choices), default=1) + 1):
        for chosen in product(*(range(min(count, len(each))) for each in choices)):
            if max(chosen, default=0) == count - 1:  # the others came with a smaller count
                yield tuple(each[index] for each, index in zip(choices, chosen, strict=True))


def _values(shown: Any) -> list[Any]:
    match shown:
        case bool() | None:
            return [shown]
        case int():
            return [of_type(shown) for of_type, least, greatest in _INTEGERS if least <= shown <= greatest]
        case float():
            return [shown, *([types.Float32(shown)] if abs(shown) < _GREATEST_FLOAT32 else [])]
        case list():
            return [[*values] for values in islice(_combinations([_values(each) for each in shown]), _MOST)]
        case dict():
            return [*islice(_tables(shown), _MOST)]
        case _:
            return [*([None] if shown == _VOID else []), *_strings(str(shown))]


def _strings(shown: str) -> Iterator[str | types.ByteArray]:
    yield shown
    yield types.ByteArray(shown.encode("utf-8", "surrogatepass"))
    if shown.startswith(_NOT_UTF8):
        try:
            raw = b64decode(shown.removeprefix(_NOT_UTF8), validate=True)
        except ValueError:
            return
        yield types.ByteArray(raw)
        yield raw.decode("utf-8", "surrogateescape")
