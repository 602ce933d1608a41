"""Dead letters: their headers, as RabbitMQ writes them, and what happens to those that cannot be published."""

import logging
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqtool.broker.embedded.model.amqp_errors import FailureLog
from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    TimeOfDeath,
    encode_address,
)
from mqtool.broker.embedded.model.clock import Clock
from mqtool.broker.embedded.model.dead_lettering import DeadLettered, DeadLetters, dead_letter, deaths, would_cycle
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue, Outcome
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.field_tables import Int32, Int64, Table, Timestamp
from tests.unit.embedded import test_queue as queues

NOW = 1_700_000_000_500
_FIRST = ("x-first-death-exchange", "x-first-death-queue", "x-first-death-reason")
_LAST = tuple(name.replace("first", "last") for name in _FIRST)


def message(headers: Table | None = None, expiration: bytes | None = None) -> BrokerMessage:
    fields = {} if expiration is None else {"expiration": bytes([len(expiration)]) + expiration}
    properties = MessageProperties.of(fields)
    if headers:
        properties = properties.replace(headers=headers)
    return BrokerMessage(encode_address("logs", "eu"), ContentHeader.of(properties, 4), b"body")


def dead(
    of: BrokerMessage, queue: str = "jobs", reason: str = "expired", key: str | None = None, *, trusts: bool = False,
    now: int = NOW,
) -> BrokerMessage:  # fmt: skip
    return dead_letter(of, queue, reason, "dlx", key, now, trusts_deaths=trusts)


def death(queue: str = "jobs", reason: str = "expired", count: object = 1, **more: Any) -> dict[str, Any]:
    return {"queue": queue, "reason": reason, "count": count, **more}


@pytest.mark.parametrize("trusts", [True, False], ids=["before 4.0", "since 4.0"])
def test_the_x_death_header_says_where_and_why_a_message_was_dead_lettered(trusts: bool) -> None:
    """When a message is dead-lettered for the first time, its body, routing key and headers stay the same. The x-death
    header has one entry, which contains the queue, the reason, the time, and the message's exchange and routing keys.
    """
    letter = dead(message({"x": 1, "CC": ["copy", b"raw", 5]}), trusts=trusts)
    assert (letter.exchange, letter.routing_key, letter.body) == ("dlx", "eu", b"body")
    headers = dict(letter.headers)
    [entry] = cast(list[dict[str, Any]], headers.pop("x-death"))
    assert entry == {
        "count": 1, "reason": "expired", "queue": "jobs", "time": NOW // 1000, "exchange": "logs",
        "routing-keys": ["eu", "copy", b"raw"],
    }  # fmt: skip
    assert isinstance(entry["count"], Int64)
    assert isinstance(entry["time"], TimeOfDeath)
    assert (entry["time"].first, entry["time"].last) == (NOW, NOW)
    expected = dict(zip(_FIRST, ("logs", "jobs", "expired"), strict=True))
    if not trusts:
        expected |= zip(_LAST, ("logs", "jobs", "expired"), strict=True)
    assert headers == {"x": 1, "CC": ["copy", b"raw", 5], **expected}
    assert letter.is_dead


def test_a_dead_letter_routing_key_replaces_all_other_routing_keys() -> None:
    """A dead letter keeps all routing keys, unless its queue has a dead-letter routing key: then it has only this one,
    and the header CC is removed. The x-death header contains the old routing keys, except those of BCC.
    """
    blind = message({"CC": ["copy"]})
    blind.copies = ["copy", "secret"]
    assert dead(blind).keys() == ["eu", "copy", "secret"]
    letter = dead(blind, key="dead", trusts=True)
    assert letter.keys() == ["dead"]
    assert "CC" not in letter.headers
    assert deaths(letter)[0]["routing-keys"] == ["eu", "copy"]
    assert dead(message(), key="").routing_key == ""


def test_a_dead_letter_does_not_expire_again() -> None:
    """When a message is dead-lettered, the broker removes its expiration, so that it does not expire again. The x-death
    header contains the removed value as original-expiration.
    """
    letter = dead(message(expiration=b"5000"))
    assert letter.properties.expiration is None
    assert deaths(letter)[0]["original-expiration"] == "5000"
    assert "original-expiration" not in deaths(dead(message()))[0]


def test_x_death_counts_a_repeated_death_and_lists_it_first() -> None:
    """If a queue dead-letters a message again for the same reason, the count of the existing x-death entry increases
    and the entry moves to the front, but its time does not change. Each combination of queue and reason has its own
    entry.
    """
    letter = message()
    for number, (queue, reason) in enumerate([("a", "expired"), ("b", "expired"), ("a", "rejected"), ("b", "expired")]):
        letter = dead(letter, queue, reason, now=NOW + number * 10_000)
    assert [(each["queue"], each["reason"], each["count"]) for each in deaths(letter)] == [
        ("b", "expired", 2), ("a", "rejected", 1), ("a", "expired", 1),
    ]  # fmt: skip
    time = deaths(letter)[0]["time"]
    assert isinstance(time, TimeOfDeath)
    assert (time, time.first, time.last) == ((NOW + 10_000) // 1000, NOW + 10_000, NOW + 30_000)
    assert isinstance(deaths(letter)[0]["count"], Int64)
    assert [letter.headers[name] for name in _FIRST] == ["logs", "a", "expired"]
    assert [letter.headers[name] for name in _LAST] == ["dlx", "b", "expired"]


@pytest.mark.parametrize(
    "forged",
    [{"x-death": [death(count=5)]}, dict.fromkeys(_FIRST + _LAST, "forged")],
    ids=["x-death", "first and last death"],
)
def test_a_publishers_death_headers_are_kept_only_before_4_0(forged: Table) -> None:
    """When a message is dead-lettered, an embedded broker that imitates RabbitMQ 4.0 or later removes x-death,
    x-first-death and x-last-death headers that the publisher has set. An embedded broker that imitates an earlier
    version keeps these headers and adds to them.
    """
    letter = dead(message({**forged, "x": 1}))
    assert letter.headers == dead(message({"x": 1})).headers
    trusted = dead(message(forged), trusts=True)
    if "x-death" in forged:
        assert deaths(trusted)[0]["count"] == 6
    else:
        assert {name: trusted.headers[name] for name in forged} == forged


@pytest.mark.parametrize(
    ("count", "time", "next_count", "next_time"),
    [
        (2**63 - 1, Timestamp(5), 2**63 - 1, (5, 5000, NOW)),
        (2**63 - 2, Timestamp(5), 2**63 - 1, (5, 5000, NOW)),
        (-1, Timestamp(5), 0, (5, 5000, NOW)),
        ("many", "yesterday", 1, "yesterday"),
    ],
    ids=["largest count", "almost the largest count", "negative count", "text"],
)
def test_a_forged_x_death_header_raises_no_error(count: object, time: Any, next_count: int, next_time: object) -> None:
    """A broker that imitates RabbitMQ before 4.0 keeps the x-death header that a publisher has set. If the header
    contains an impossible count or time, dead-lettering raises no error. The count never exceeds 2^63-1, and a count
    that is a string is replaced by 1. Unknown fields are kept.
    """
    letter = dead(message({"x-death": [death(count=count, time=time, more=7)]}), trusts=True)
    [entry] = deaths(letter)
    found = entry["time"]
    assert entry["count"] == next_count
    assert (int(found), found.first, found.last) == next_time if isinstance(found, TimeOfDeath) else found == next_time
    assert entry["more"] == 7


@pytest.mark.parametrize("forged", ["text", 5, [], ["text", 5]], ids=["text", "number", "empty list", "list of others"])
def test_elements_of_x_death_that_are_not_tables_are_ignored(forged: Any) -> None:
    """If a publisher sets x-death to something other than a list, the broker ignores the header. In a list, it ignores
    all elements that are not tables.
    """
    assert deaths(message({"x-death": forged})) == []
    assert len(deaths(dead(message({"x-death": forged}), trusts=True))) == 1
    assert deaths(message()) == []
    assert dead(message({"CC": "no list"}), trusts=True).headers["CC"] == "no list"


@pytest.mark.parametrize(
    ("entries", "cycles"),
    [
        ([], False),
        ([death("jobs")], True),
        ([death("other")], False),
        ([death("other"), death("jobs")], True),
        ([death("jobs", "rejected")], False),
        ([death("other", "rejected"), death("jobs")], False),
        ([death("other"), death("jobs", "maxlen"), death("third", "rejected")], True),
    ],
    ids=[
        "first death",
        "same queue",
        "other queue",
        "same queue earlier",
        "rejected",
        "rejected since then",
        "rejected before that",
    ],
)
def test_a_dead_letter_that_returns_to_its_queue_is_dropped_unless_it_was_rejected(
    entries: list[dict[str, Any]], cycles: bool
) -> None:
    """If a dead letter returns to a queue that has dead-lettered it before, the broker drops it, because it would
    otherwise circulate forever. The broker adds it to the queue only if a consumer rejected the message, either in
    this queue or in a queue through which the message has passed since.
    """
    given = message({"x-death": cast(Any, entries)})
    assert would_cycle(given, "jobs") is cycles
    clock = queues.FakeClock()
    vhost = VirtualHost("/", clock, Ledger(), PROFILES[Like.V3_10])  # it keeps an x-death header from a publisher
    jobs = queues.add_queue(vhost, "jobs")
    last = queues.add_queue(
        vhost, "last", x_message_ttl=Int32(0), x_dead_letter_exchange="", x_dead_letter_routing_key="jobs"
    )
    last.publish(given)
    clock.pass_by(1)
    assert (len(last), len(jobs)) == (0, int(not cycles))


class FakeClock:
    """A clock that a test advances, and which records the turns of work that are due."""

    def __init__(self) -> None:
        self.time = 0.0
        self.turns: list[Callable[[], object]] = []

    def wall(self) -> int:
        return NOW

    def elapsed(self) -> float:
        return self.time

    def take_turn(self, what: Callable[[], object]) -> None:
        self.turns.append(what)


def queue(exchange: str | None = "dlx", key: str | None = None) -> BrokerQueue:
    options = SimpleNamespace(dead_letter_exchange=exchange, dead_letter_routing_key=key)
    return cast(BrokerQueue, SimpleNamespace(name="jobs", options=options))


def dead_letters(
    publish: Callable[[BrokerMessage, DeadLettered], bool], clock: FakeClock | None = None, *, trusts: bool = False
) -> DeadLetters:
    def in_one_step(message: BrokerMessage, source: DeadLettered) -> Generator[None, None, bool]:
        yield from ()
        return publish(message, source)

    return DeadLetters(in_one_step, cast(Clock, clock or FakeClock()), FailureLog(), trusts_deaths=trusts)


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.parametrize(("taken", "outcome"), [(True, Outcome.TAKEN), (False, Outcome.NOT_TAKEN)])
def test_the_original_queue_of_a_dead_letter_is_informed_whether_it_was_accepted(
    trusts: bool, taken: bool, outcome: Outcome
) -> None:
    """The broker publishes a dead letter to its queue's dead-letter exchange, with the queue's dead-letter routing key.
    It then tells the original queue whether another queue has accepted the dead letter.
    """
    published, outcomes = list[tuple[BrokerMessage, DeadLettered]](), list[Outcome]()

    def publish(letter: BrokerMessage, source: DeadLettered) -> bool:
        published.append((letter, source))
        return taken

    letters, source, given = dead_letters(publish, trusts=trusts), queue(key="dead"), message({"x-death": [death()]})
    letters.add(source, given, "expired", 0, outcomes.append)
    assert outcomes == [outcome]
    [(letter, told)] = published
    assert (letter.exchange, letter.routing_key) == ("dlx", "dead")
    assert deaths(letter)[0]["queue"] == "jobs"
    assert deaths(letter)[0]["count"] == 1 + trusts
    assert told == (source, given, "expired", 0)
    if not trusts:
        assert cast(Any, deaths(letter)[0]["time"]).first == NOW


@pytest.mark.parametrize("exchange", [None, "e" * 256])
def test_without_a_valid_dead_letter_exchange_dead_letters_are_not_published(exchange: str | None) -> None:
    """If a queue has no dead-letter exchange, or the name of its dead-letter exchange is longer than 255 bytes, the
    broker does not publish the messages that the queue dead-letters. It treats these messages like unroutable dead
    letters.
    """
    outcomes = list[Outcome]()
    dead_letters(lambda *_: pytest.fail("published")).add(queue(exchange), message(), "expired", 0, outcomes.append)
    assert outcomes == [Outcome.NOT_TAKEN]


def test_a_dead_letter_that_cannot_be_published_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """If an error prevents the broker from dead-lettering a message, the broker logs an error that names the message's
    queue, and informs this queue that dead-lettering failed. The next message is still dead-lettered.
    """
    outcomes = list[Outcome]()

    def publish(letter: BrokerMessage, _: DeadLettered) -> bool:
        if letter.headers.get("x"):
            raise ValueError("broken")
        return True

    letters = dead_letters(publish)
    with caplog.at_level(logging.ERROR):
        letters.add(queue(), message({"x": 1}), "expired", 0, outcomes.append)
        letters.add(queue(), message(), "expired", 0, outcomes.append)
    assert outcomes == [Outcome.FAILED, Outcome.TAKEN]
    [record] = caplog.records
    assert "a message of queue 'jobs' cannot be dead-lettered: " in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "broken"


def test_when_the_broker_stops_it_continues_dead_lettering_for_a_limited_time() -> None:
    """When the broker stops, it calls DeadLetters.finish(), which dead-letters the messages that are still waiting,
    but only for a limited time. The method returns how many messages are left after that time.
    """
    clock, outcomes = FakeClock(), list[Outcome]()

    def publish(*_: object) -> bool:
        clock.time += 1
        return True

    letters = dead_letters(publish, clock)
    for _ in range(5):
        letters.add(queue(), message(), "expired", 0, outcomes.append)
    assert outcomes == [Outcome.TAKEN]
    assert letters.finish(until=clock.time + 2.5) == 1
    assert outcomes == [Outcome.TAKEN] * 4


def test_a_dead_letter_for_many_queues_is_published_step_by_step_before_the_next_one() -> None:
    """If a dead letter goes to many queues, the broker adds it to them in several turns of its event loop, and serves
    other clients in between. It publishes the next dead letter only after the last of these turns. If the broker
    stops before the last turn, the dead letter counts as not published.
    """
    clock, outcomes, added = FakeClock(), list[Outcome](), list[tuple[int, int]]()

    def publish(letter: BrokerMessage, _: DeadLettered) -> Generator[None, None, bool]:
        for part in range(3):
            clock.time += 1
            added.append((cast(int, letter.headers["number"]), part))
            yield
        return True

    letters = DeadLetters(publish, cast(Clock, clock), FailureLog(), trusts_deaths=False)
    for number in range(3):
        letters.add(queue(), message({"number": number}), "expired", 0, outcomes.append)
    assert (added, outcomes) == ([(0, 0)], [])
    for _ in range(3):
        clock.turns.pop()()
    assert (added, outcomes) == ([(0, 0), (0, 1), (0, 2), (1, 0)], [Outcome.TAKEN])
    assert letters.finish(until=clock.time + 2.5) == 1
    assert outcomes == [Outcome.TAKEN] * 2
