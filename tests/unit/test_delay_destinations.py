"""Where a delayed message goes when it is due, and the names of what it waits in."""

import pytest

from mqtool.delays.destinations import Destination, derived_name, name_for
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.topology import DEFAULT_EXCHANGE, Exchange, Queue

_LOGS, _HELLO = Exchange("logs", "fanout"), Queue("hello", arguments={"x-queue-type": "quorum"})


@pytest.mark.parametrize(
    ("to", "exchange", "key", "found"),
    [
        (_HELLO, None, None, _HELLO),
        (_HELLO, None, "hello", _HELLO),
        (_HELLO, None, "other", Queue("other")),
        (_HELLO, "", "other", Queue("other")),
        (_HELLO, "logs", "hello", Exchange("logs", durable=True)),
        (_LOGS, None, "key", _LOGS),
        (_LOGS, "logs", "key", _LOGS),
        (_LOGS, "audit", "key", Exchange("audit", durable=True)),
        (_LOGS, "", "hello", Queue("hello")),
        (_LOGS, "", None, Queue("")),
        (DEFAULT_EXCHANGE, None, "hello", Queue("hello")),
        (DEFAULT_EXCHANGE, None, None, Queue("")),
    ],
)
def test_a_delayed_message_goes_where_it_would_go_without_a_delay(
    to: Exchange | Queue, exchange: str | None, key: str | None, found: Exchange | Queue
) -> None:
    """A message's own exchange and routing key count, and otherwise those of the command; with the default exchange,
    the routing key names a queue.
    """
    assert Destination(to).of(Message(b"", key, exchange)) == found


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_delayed_message_to_several_queues_is_refused(header: str) -> None:
    """A message to a queue with a header CC or BCC raises BadData, because it would reach only one of its queues."""
    message = Message(b"", None, None, {"headers": {header: ["a", "b"], "x": 1}})
    with pytest.raises(BadData, match="CC or BCC") as error:
        Destination(_HELLO).of(message)
    assert str(error.value) == "a message to a queue cannot be delayed if it has a header CC or BCC"
    assert error.value.hint == "send it to each queue separately"
    assert Destination(_LOGS).of(message) == _LOGS
    assert Destination(_HELLO).of(Message(b"", None, None, {"headers": {"x": 1}})) == _HELLO


def test_the_queue_of_a_destination_is_the_one_in_which_messages_arrive() -> None:
    """It is the destination itself, or the queue that the command binds to its x-delayed-message exchange, if any."""
    assert Destination(_HELLO).queue == _HELLO
    assert Destination(_LOGS).queue is None
    assert Destination(_LOGS, leads_to=_HELLO).queue == _HELLO


@pytest.mark.parametrize(
    ("to", "is_classic", "may"),
    [
        (_HELLO, True, False),
        (_HELLO, False, True),
        (_HELLO, None, True),
        (Exchange("logs", durable=True), None, True),
        (Exchange("logs", durable=False), None, False),
    ],
)
def test_messages_are_kept_safe_on_the_way_to_what_may_be_a_quorum_queue(
    to: Exchange | Queue, is_classic: bool | None, may: bool
) -> None:
    """A queue may be a quorum queue unless it is known to be classic, and a durable exchange may lead to one."""
    destination = Destination(to, is_classic=is_classic)
    assert destination.may_lead_to_quorum_queue(to) is may
    assert destination.may_lead_to_quorum_queue(Queue("another"))


def test_a_helpers_name_is_that_of_its_target_with_a_suffix() -> None:
    """A helper of a predeclared exchange gets a prefix, because clients may not declare names that begin with amq."""
    assert name_for(_HELLO, "delay") == "hello.delay"
    assert name_for(Exchange("amq.topic"), "delayed") == "mqtool.amq.topic.delayed"
    assert name_for(Exchange("amqp"), "delayed") == "amqp.delayed"


@pytest.mark.parametrize("letter", ["a", "é", "語"])
def test_a_long_name_is_cut_to_what_amqp_allows(letter: str) -> None:
    """A derived name has at most 255 bytes and keeps its suffix; different names stay different."""
    size = len(letter.encode())
    longest = letter * (249 // size) + "b" * (249 % size)
    assert derived_name(longest, "delay") == f"{longest}.delay"
    assert len(derived_name(longest, "delay").encode()) == 255
    one, other = (derived_name(longest + last, "delay") for last in "bc")
    assert one != other
    assert one == derived_name(longest + "b", "delay")
    for name in (one, other):
        assert name.endswith(".delay")
        assert "~" in name
        assert 255 - size < len(name.encode()) <= 255
        assert longest.startswith(name.partition("~")[0])


def test_a_derived_name_is_the_same_in_each_version() -> None:
    """Wait queues outlive the command that declared them, so the next version of mqtool must find them by name."""
    assert derived_name("a" * 300, "delay") == "a" * 232 + "~8b397aa4c75429a2.delay"


def test_a_name_that_is_not_utf_8_can_be_derived_from() -> None:
    """A name with any bytes, as a shell passes them, is cut like others."""
    assert derived_name("a\udcff", "delay") == "a\udcff.delay"
    assert derived_name("a\udcff" * 200, "delay").startswith("aaa")
