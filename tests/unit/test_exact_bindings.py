"""How `queue convert` finds out the types of a binding's arguments, which the management API does not show. It makes
trial bindings with the types that clients usually send, and compares their hashes in the management API with that of
the binding.
"""

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
from mqtool.work.exact_bindings import ExactBindings, described, is_large


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
        return [found for _, found in self.exact().of([view(each) for each in bindings])]


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
        {"value": "Not UTF-8, base64 is: /wA="},
        {"value": "Not UTF-8, base64 is: ?"},
        {"value": 0.5},
        {"value": Int32(5)},
        {"value": Int64(5)},
        {"value": "undefined", "int": Int64(5)},
        {"value": [None, {"deep": [Int64(1), "text"], "void": None}]},
        {"x-match": "all", "void": None, "int": Int32(5)},
        {"small": Int32(1), "int": [Int32(-(2**31)), Int32(2**31 - 1)], "long": [Int64(-(2**31) - 1), Int64(2**31)]},
    ],
    ids=repr,
)
def test_queue_convert_keeps_the_types_of_a_bindings_arguments(broker: Broker, arguments: dict[str, Any]) -> None:
    """When `queue convert` moves a binding, the arguments of the new binding have the same types as those of the old
    one, such as void or a 64-bit integer, although the management API does not show these types.
    """
    [found] = broker.of(bound(arguments))
    assert is_same(found, bound(arguments))
    assert broker.existing == []


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {"value": value}
            for value in (ByteArray(b"text"), ByteArray(b"undefined"), ByteArray(b"\xff\x00"), "\udcff")
        ),
        *({"value": kind(5)} for kind in (Int8, Int16, UInt8, UInt16, UInt32, Timestamp)),
        {"value": Float32(0.5)},
        {"value": Decimal(1, 314)},
        {"value": Int32(5), "other": Int64(5)},
        {"value": None, "other": "undefined"},
        {"value": Timestamp(2**63)},
    ],
    ids=repr,
)
def test_queue_convert_cannot_keep_a_binding_with_arguments_of_unusual_types(
    broker: Broker, arguments: dict[str, Any]
) -> None:
    """`queue convert` cannot keep a binding if its arguments have unusual types, such as bytes or timestamps, or if
    they contain small integers of both sizes, 32 and 64 bits. The command still finds out the types of the arguments of
    the queue's other bindings.
    """
    text = bound({"b": "text"}, "us")
    found, other = broker.of(bound(arguments), text)
    assert found is None
    assert is_same(other, text)
    assert broker.existing == []


def test_queue_convert_cannot_keep_a_binding_with_arguments_that_mqtool_cannot_send(broker: Broker) -> None:
    """`queue convert` finds out the types of a binding's arguments with a trial binding. If the management API shows
    an argument whose name is longer than AMQP allows, the command cannot keep the binding, and makes no trial
    binding.
    """
    shown_like_this = {**view(bound({"a": "text"})), "arguments": {"a" * 256: "text"}}
    assert [found for _, found in broker.exact().of([shown_like_this])] == [None]
    assert broker.declared == []


def test_queue_convert_makes_trial_bindings_for_up_to_50_bindings_at_once(broker: Broker) -> None:
    """To find out the AMQP types of the arguments of a queue's bindings, `queue convert` makes trial bindings for up to
    50 of these bindings at once. It tries at most four combinations of types for each binding, and tries equal
    arguments only once. Later in the same conversion, it does not try the same arguments again, whether it has found
    out their types or not.
    """
    exact = broker.exact()
    same = [bound({"n": Int32(5)}), bound({"n": Int64(5)}, "us"), bound({"n": Int32(5)}, "asia")]
    usual = [*same, bound({"b": "t"}), bound({"c": "undefined", "n": Int64(5)}, "africa")]
    views = [view(each) for each in (*usual, bound({"unknown": Int8(5)}))]
    for _ in range(2):
        *found, unknown = [each for _, each in exact.of(views)]
        assert unknown is None
        assert all(is_same(each, expected) for each, expected in zip(found, usual, strict=True))
    assert [len(each) for each in broker.trials] == [2 + 1 + 4 + 2]
    assert all(found is not None for _, found in exact.of([view(bound({"m": str(number)})) for number in range(51)]))
    assert [len(each) for each in broker.trials[1:]] == [50, 1]


def test_queue_convert_makes_no_more_trial_bindings_than_needed(broker: Broker) -> None:
    """To find out the AMQP types of the arguments of a queue's bindings, `queue convert` makes trial bindings for 50 of
    these bindings at a time. If one of the first 50 cannot be kept, the command can refuse the conversion without trial
    bindings for the others.
    """
    bindings = [bound({"unknown": Int8(5)}), *(bound({"m": str(number)}) for number in range(100))]
    assert next(broker.exact().of([view(each) for each in bindings])) == (view(bindings[0]), None)
    assert len(broker.trials) == 1


def test_queue_convert_cannot_keep_a_binding_with_large_arguments(broker: Broker) -> None:
    """If the arguments of a binding take more than 8,192 bytes as JSON, `queue convert` cannot keep the binding. It
    makes no trial binding to find out the types of the arguments, because that would copy the arguments.
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
def test_queue_convert_keeps_a_bindings_routing_key_and_destination(
    broker: Broker, key: str, arguments: dict[str, Any]
) -> None:
    """When `queue convert` declares a binding again, the binding keeps its routing key, even if the key is empty or
    contains special characters. It also keeps its destination, which is the queue or, during the conversion, an
    exchange. The command first makes a trial binding only if the binding has arguments, to find out their types.
    """
    for to_exchange in (False, True):
        binding = Binding("logs", "other", key, arguments, to_exchange)
        [found] = broker.of(binding)
        assert is_same(found, binding)
    assert bool(broker.declared) == bool(arguments)


@pytest.mark.parametrize("arguments", [{}, {"a": "text"}])
def test_queue_convert_cannot_keep_a_binding_whose_routing_key_is_not_utf_8(
    broker: Broker, arguments: dict[str, Any]
) -> None:
    """The management API does not show all bytes of a routing key that is not valid UTF-8. `queue convert` therefore
    cannot keep a binding with such a routing key.
    """
    assert broker.of(bound(arguments, "\udcff")) == [None]


def test_trial_bindings_leave_nothing_behind_if_queue_convert_is_killed(broker: Broker) -> None:
    """To find out the AMQP types of the arguments of a queue's bindings, `queue convert` makes trial bindings between
    an exclusive queue and an auto-delete exchange. The broker deletes this queue and this exchange even if the command
    is killed. Both have the same name, which begins with the name of the queue to convert, and is different for each
    trial.
    """
    broker.of(*(bound({"m": str(number)}) for number in range(51)))
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
def test_queue_convert_deletes_its_trial_queue_and_exchange_if_a_trial_is_refused(broker: Broker, method: str) -> None:
    """To find out the types of arguments, `queue convert` declares an exchange and a queue, and makes trial bindings
    between them. If the broker refuses one of these steps, for example because the user lacks a permission, the
    command ends with the broker's error, and deletes what it has declared.
    """
    broker.refused = method
    with pytest.raises(AccessRefused, match=f"^{method} refused$"):
        broker.of(bound({"a": "text"}))
    assert broker.existing == []


def test_queue_convert_waits_until_the_management_api_shows_its_trial_bindings(
    broker: Broker, clock: list[float]
) -> None:
    """To find out the AMQP types of the arguments of a queue's bindings, `queue convert` makes trial bindings with
    these arguments, and looks at them in the management API. In a cluster, the API may not show new bindings
    immediately. The command looks every 50 ms until the API shows all of its trial bindings.
    """
    broker.unseen = 3
    bindings = [bound({"a": "text"}), bound({"b": "text"})]
    for found, expected in zip(broker.of(*bindings), bindings, strict=True):
        assert is_same(found, expected)
    assert clock == [0.05] * 3


def test_queue_convert_ends_if_the_management_api_does_not_show_its_trial_bindings(
    broker: Broker, clock: list[float]
) -> None:
    """To find out the AMQP types of the arguments of a queue's bindings, `queue convert` makes trial bindings with
    these arguments, and looks at them in the management API. If the API does not show the trial bindings within 5 s,
    the command deletes its trial queue and trial exchange, and ends with an error.
    """
    broker.unseen = 1_000
    with pytest.raises(Unavailable, match=r"^the management API does not show new bindings$") as caught:
        broker.of(bound({"a": "text"}))
    assert caught.value.hint == "try again later"
    assert 5.0 < sum(clock) < 5.1
    assert broker.existing == []


@pytest.mark.parametrize("checks", range(4))
def test_ctrl_c_ends_queue_convert_while_it_finds_out_the_types_of_arguments(broker: Broker, checks: int) -> None:
    """To find out the types of arguments, `queue convert` declares an exchange and a queue, makes trial bindings
    between them, and waits until the management API shows these bindings. If the user presses Ctrl-C before one of
    these steps or during the wait, the command deletes what it has declared, and ends.
    """
    broker.unseen, left = 1_000, [None] * checks

    def check() -> None:
        if not left:
            raise MqtoolError("stopped")
        left.pop()

    exact = broker.exact(check)
    with pytest.raises(MqtoolError, match=r"^stopped$"):
        list(exact.of([view(bound({"n": 5}))]))
    assert len(broker.declared) == 2 * bool(checks)
    assert sum(map(len, broker.trials)) == max(0, checks - 1)
    assert broker.existing == []


def test_a_binding_is_described_by_its_exchange_routing_key_and_arguments() -> None:
    """When `queue convert` cannot keep a binding, it names the binding's exchange and routing key, and shows up to 200
    characters of its arguments.
    """
    assert described(view(bound({}))) == "from 'logs' ('eu')"
    assert described(view(bound({"a": "é"}))) == "from 'logs' ('eu', {\"a\": \"é\"})"
    assert described(view(bound({"a": "x" * 300}))) == "from 'logs' ('eu', {\"a\": \"" + "x" * 193 + "…)"
