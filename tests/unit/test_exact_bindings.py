"""The exact arguments of bindings, found out on a broker whose management API shows them without their types."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from hashlib import md5
from typing import Any, cast
from urllib.parse import quote_plus, unquote

import pytest

from mqtool.amqp import Channel
from mqtool.codecs.field_tables import (
    CLIENT,
    ByteArray,
    Decimal,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
)
from mqtool.errors import AccessRefused, MqtoolError, Unavailable
from mqtool.management import Management
from mqtool.topology import Binding, Exchange, Queue
from mqtool.work import exact_bindings
from mqtool.work.exact_bindings import ExactBindings, is_large


def shown(value: Any) -> Any:
    """A value of a table as RabbitMQ's management API shows it."""
    match value:
        case None:
            return "undefined"
        case bool() | float():
            return value if isinstance(value, bool) else float(value)
        case int():
            return int(value)
        case list():
            return [shown(each) for each in value]
        case Decimal():
            return value.value / 10**value.scale
        case dict():
            return {name: shown(each) for name, each in value.items()}
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"Not UTF-8, base64 is: {b64encode(data).decode()}"


def view(binding: Binding) -> dict[str, Any]:
    """A binding as the management API describes it."""
    key = quote_plus(binding.routing_key.encode("utf-8", "surrogateescape")).replace("~", "%7E")
    hashed = md5(CLIENT.encode_table(binding.arguments), usedforsecurity=False).hexdigest()
    return {
        "source": binding.source,
        "destination": binding.destination,
        "destination_type": "exchange" if binding.to_exchange else "queue",
        "routing_key": shown(binding.routing_key),
        "arguments": shown({**binding.arguments}),
        "properties_key": f"{key}~{hashed}" if binding.arguments else key or "~",
    }


def bound(arguments: Mapping[str, Any], key: str = "eu") -> Binding:
    return Binding("logs", "jobs", key, arguments)


class Broker:
    """A broker, with a channel and a management API in one.

    Attributes:
        declared: the queues and exchanges that have been declared.
        existing: the names of those that have not been deleted, with `q` or `e` before each.
        trials: the arguments of the bindings of each trial.
        looks: the number of times that the API was asked for bindings.
        unseen: the number of times that it lacks the last binding.
        refused: the method that the broker refuses.
    """

    def __init__(self) -> None:
        self.declared: list[Queue | Exchange] = []
        self.existing: list[tuple[str, str]] = []
        self.trials: list[list[Mapping[str, Any]]] = []
        self.looks = self.unseen = 0
        self.refused = ""
        self._bindings: list[Binding] = []

    def declare(self, thing: Queue | Exchange, *, remember: bool) -> None:
        assert not remember, "it would be declared again after a reconnection"
        self._called(f"declare {type(thing).__name__}")
        self.declared.append(thing)
        self.existing.append(("q" if isinstance(thing, Queue) else "e", thing.name))

    def ask(self, request: Callable[["Broker", Callable[[object], None]], None]) -> Any:
        request(self, lambda _: None)
        return type("Reply", (), {"method": type("DeleteOk", (), {"message_count": 0})})

    def queue_bind(self, queue: str, exchange: str, routing_key: str, arguments: dict[str, Any], **_: object) -> None:
        self._called("bind")
        assert self.existing == [("q", queue), ("e", exchange)]
        if not self._bindings:
            self.trials.append([])
        self.trials[-1].append(arguments)
        self._bindings.append(Binding(exchange, queue, routing_key, arguments))

    def exchange_delete(self, name: str, **_: object) -> None:
        self.existing.remove(("e", name))

    def queue_delete(self, name: str, **_: object) -> None:
        self.existing.remove(("q", name))
        self._bindings.clear()

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        name = self.declared[-1].name
        assert [*map(unquote, path.split("/"))] == ["bindings", "a/b", "e", name, "q", name]
        self.looks += 1
        views = [view(each) for each in self._bindings]
        for each in views:  # JSON objects have no order
            each["arguments"] = dict(reversed(each["arguments"].items()))
        return reversed(views[:-1] if self.looks <= self.unseen else views)

    def _called(self, method: str) -> None:
        if method == self.refused:
            raise AccessRefused(f"{method} refused")

    def exact(self, check: Callable[[], None] = lambda: None) -> ExactBindings:
        """Begin to convert the queue `jobs` of the vhost `a/b`."""
        return ExactBindings(cast(Channel, self), cast(Management, self), "a/b", "jobs", check)

    def of(self, *bindings: Binding) -> list[Binding | None]:
        """Find out the exact bindings."""
        return self.exact().of([view(each) for each in bindings])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pass time only while mqtool sleeps; return the lengths of its sleeps."""
    sleeps: list[float] = []
    monkeypatch.setattr(exact_bindings.time, "monotonic", lambda: sum(sleeps))
    monkeypatch.setattr(exact_bindings.time, "sleep", sleeps.append)
    return sleeps


@pytest.fixture
def broker(clock: list[float]) -> Broker:
    return Broker()


def is_same(found: Binding | None, expected: Binding) -> bool:
    """True if the binding is as expected, and the types of its arguments are, too."""
    assert found is not None
    ends = [(each.source, each.destination, each.routing_key, each.to_exchange) for each in (found, expected)]
    return ends[0] == ends[1] and CLIENT.encode_table(found.arguments) == CLIENT.encode_table(expected.arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": None},
        {"value": "undefined"},
        {"value": "text"},
        {"value": True},
        {"value": ByteArray(b"text")},
        {"value": ByteArray(b"undefined")},
        {"value": ByteArray(b"\xff\x00")},
        {"value": "\udcff"},
        {"value": "Not UTF-8, base64 is: /wA="},
        {"value": "Not UTF-8, base64 is: ?"},
        {"value": 0.5},
        {"value": Float32(0.5)},
        {"value": [None, {"deep": [Int64(1), "text"]}]},
        {"value": Timestamp(1_700_000_000)},
        *({"value": kind(5)} for kind in (Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32)),
        {"x-match": "all", "void": None, "int": Int32(5)},
        {"x-match": "any", "value": ByteArray(b"text")},
    ],
    ids=repr,
)
def test_a_binding_keeps_the_types_of_its_arguments(broker: Broker, arguments: dict[str, Any]) -> None:
    """When `queue convert` moves a binding, the arguments of the new binding have the types of the old one, such as
    bytes or a timestamp, although the management API does not show these types.
    """
    [found] = broker.of(bound(arguments))
    assert is_same(found, bound(arguments))
    assert broker.existing == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"small": Int32(1), "int": [Int32(-(2**31)), Int32(2**31 - 1)], "long": [Int64(-(2**31) - 1), Int64(2**31)]},
        {
            "8 bits": [Int8(-(2**7)), Int8(2**7 - 1)],
            "16 bits": [Int16(-(2**7) - 1), Int16(2**7), Int16(-(2**15)), Int16(2**15 - 1)],
            "32 bits": [Int32(-(2**15) - 1), Int32(2**15), Int32(-(2**31)), Int32(2**31 - 1)],
            "64 bits": [Int64(-(2**31) - 1), Int64(2**31)],
        },
    ],
    ids=["32 bits or more", "as few bits as possible"],
)
def test_a_binding_keeps_the_sizes_of_its_integers(broker: Broker, arguments: dict[str, Any]) -> None:
    """`queue convert` keeps integers of several sizes in one binding, if its client has sent each with 32 bits or, if
    it is larger, 64 bits; or if its client has sent each in the smallest signed type.
    """
    [found] = broker.of(bound(arguments))
    assert is_same(found, bound(arguments))


def test_what_most_clients_send_is_tried_first(broker: Broker) -> None:
    """`queue convert` needs a single trial for bindings with the types that pika and mqtool send: integers of 32 bits,
    or 64 bits if they are larger, texts, floating-point numbers of 64 bits, void and bytes that are not text.
    """
    usual = {"a": Int32(5), "b": Int64(2**40), "c": "text", "d": 0.5, "e": None, "f": ByteArray(b"\xff"), "g": False}
    [found] = broker.of(bound({"x-match": "all", **usual}))
    assert is_same(found, bound({"x-match": "all", **usual}))
    assert [CLIENT.encode_table(each) for [each] in broker.trials] == [CLIENT.encode_table({"x-match": "all", **usual})]


def test_all_bindings_are_tried_at_the_same_time(broker: Broker) -> None:
    """`queue convert` tries one guess for each of a queue's bindings at a time. A binding whose types have been found
    out is not tried again: neither in the same conversion nor together with another binding that has the same
    arguments and types.
    """
    exact = broker.exact()
    bindings = [bound({"n": Int32(5)}), bound({"n": Int64(5)}, "us"), bound({"n": Int32(5)}, "asia"), bound({"b": "t"})]
    for found, expected in zip(exact.of([view(each) for each in bindings]), bindings, strict=True):
        assert is_same(found, expected)
    assert [len(each) for each in broker.trials] == [3, 1]
    assert is_same(exact.of([view(bound({"n": Int64(5)}))])[0], bound({"n": Int64(5)}))
    assert len(broker.trials) == 2


def test_a_binding_with_arguments_of_unknown_types_is_given_up(broker: Broker) -> None:
    """If none of the likely combinations of types is that of a binding, `queue convert` cannot keep the binding. It
    tries at most 32 combinations, none of them twice, and finds out the types of the other bindings.
    """
    unknown = bound({"a": Decimal(1, 314), "b": Int32(5), "c": "text", "d": "undefined"})
    text = bound({"b": "text"}, "us")
    found, other = broker.of(unknown, text)
    assert found is None
    assert other is not None
    assert is_same(other, text)
    tried = [CLIENT.encode_table(each) for trial in broker.trials for each in trial if "a" in each]
    assert (len(broker.trials), len(tried), len({*tried})) == (32, 32, 32)
    assert broker.existing == []


def test_the_combinations_of_types_end(broker: Broker) -> None:
    """If a binding's arguments allow only few combinations of types, `queue convert` gives up after the last one."""
    assert broker.of(bound({"a": Decimal(1, 314)})) == [None]
    assert [[*map(type, trial[0].values())] for trial in broker.trials] == [[float], [Float32]]


def test_a_binding_with_large_arguments_is_not_tried(broker: Broker) -> None:
    """`queue convert` does not try a binding whose arguments take more than 8,192 bytes as JSON, since trials copy the
    arguments. Such a binding cannot be kept.
    """
    largest, larger = (bound({"a": "x" * (8192 - len('{"a": ""}') + more)}) for more in (0, 1))
    assert len(json.dumps(largest.arguments)) == 8192
    assert [is_large(view(each)) for each in (largest, larger)] == [False, True]
    assert broker.of(larger) == [None]
    assert broker.declared == []
    [found] = broker.of(largest)
    assert is_same(found, largest)


@pytest.mark.parametrize("key", ["", "eu", "~", "a~b", "a b+c%", "é"])
@pytest.mark.parametrize("arguments", [{}, {"a": "text"}])
def test_a_binding_keeps_its_routing_key_and_destination(broker: Broker, key: str, arguments: dict[str, Any]) -> None:
    """`queue convert` keeps bindings with all routing keys, and bindings to exchanges. For bindings without arguments,
    it makes no trial.
    """
    for to_exchange in (False, True):
        binding = Binding("logs", "other", key, arguments, to_exchange)
        [found] = broker.of(binding)
        assert is_same(found, binding)
    assert bool(broker.declared) == bool(arguments)


@pytest.mark.parametrize("arguments", [{}, {"a": "text"}])
def test_a_binding_whose_routing_key_is_not_utf8_is_given_up(broker: Broker, arguments: dict[str, Any]) -> None:
    """The management API does not show all bytes of a routing key that is not UTF-8, so `queue convert` cannot keep a
    binding with such a key.
    """
    assert broker.of(bound(arguments, "\udcff")) == [None]


def test_a_trial_leaves_nothing_behind_if_its_command_is_killed(broker: Broker) -> None:
    """The trials of `queue convert` use an exclusive queue and an exchange that is deleted with its last binding. Their
    names begin with that of the converted queue, and differ from those of other trials.
    """
    broker.of(bound({"n": Int64(5)}))
    names = [each.name for each in broker.declared]
    assert broker.declared == [
        each
        for name in names[::2]
        for each in (Queue(name, exclusive=True), Exchange(name, "fanout", auto_delete=True))
    ]
    assert {*map(len, names)} == {len("jobs.mqtool-convert.trial.01234567")}
    assert all(name.startswith("jobs.mqtool-convert.trial.") for name in names)
    assert len({*names}) == len(broker.trials) == 2


@pytest.mark.parametrize("method", ["declare Queue", "declare Exchange", "bind"])
def test_a_refused_trial_deletes_its_queue_and_exchange(broker: Broker, method: str) -> None:
    """If the user may not declare or bind the queue or the exchange of a trial, `queue convert` ends with the broker's
    error, and deletes those of them that it has declared.
    """
    broker.refused = method
    with pytest.raises(AccessRefused, match=f"^{method} refused$"):
        broker.of(bound({"a": "text"}))
    assert broker.existing == []


def test_a_trial_waits_until_the_management_api_shows_its_bindings(broker: Broker, clock: list[float]) -> None:
    """In a cluster, the management API may not yet show all bindings of a trial. `queue convert` looks again every
    50 ms until it does.
    """
    broker.unseen = 3
    bindings = [bound({"a": "text"}), bound({"b": "text"})]
    for found, expected in zip(broker.of(*bindings), bindings, strict=True):
        assert is_same(found, expected)
    assert clock == [0.05] * 3


def test_a_trial_ends_if_the_management_api_does_not_show_its_bindings(broker: Broker, clock: list[float]) -> None:
    """If the management API does not show the bindings of a trial within 5 s, `queue convert` ends with an error, and
    deletes the queue and the exchange of the trial.
    """
    broker.unseen = 1_000
    with pytest.raises(Unavailable, match=r"^the management API does not show new bindings$") as caught:
        broker.of(bound({"a": "text"}))
    assert caught.value.hint == "try again later"
    assert 5.0 < sum(clock) < 5.1
    assert broker.existing == []


@pytest.mark.parametrize("checks", [0, 1])
def test_finding_out_types_can_be_stopped(broker: Broker, checks: int) -> None:
    """Ctrl-C ends `queue convert` before the next trial, and while it waits for the management API. The queue and the
    exchange of the trial are deleted.
    """
    broker.unseen, left = 1_000, [None] * checks

    def check() -> None:
        if not left:
            raise MqtoolError("stopped")
        left.pop()

    exact = broker.exact(check)
    with pytest.raises(MqtoolError, match=r"^stopped$"):
        exact.of([view(bound({"a": "text"}))])
    assert len(broker.declared) == 2 * checks
    assert broker.existing == []
