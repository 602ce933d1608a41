"""Declaring a dead-letter queue that may exist already, with arguments and properties that somebody else has chosen."""

from collections.abc import Iterator
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.amqp.administration import delete_queue
from mqtool.amqp.channel import Channel
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.errors import DeclaredDifferently
from mqtool.topology import Queue
from mqtool.work.dead_letter_declaration import declare_dead_letter_queue
from mqtool.work.retry_or_dead_letter import Retrying, RetryPolicy
from tests.unit.test_retrying import JOB

DEAD = Queue("jobs.dlq", durable=True)
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(params=["3.10", "4.2"])
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    with EmbeddedBroker(like=request.param) as broker, Connection(parse_addresses(broker.url)) as connection:
        yield connection.channel()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"arguments": {**QUORUM, "x-max-length": 5, "x-overflow": "reject-publish"}},
        {"arguments": {"x-queue-mode": "lazy", "x-queue-version": 2, "x-max-priority": 3}},
        {"arguments": {"x-max-length-bytes": 3_000_000_000, "x-overflow": "reject-publish-dlx"}},
        {"arguments": {"x-single-active-consumer": True}, "durable": False},
    ],
    ids=["same", "quorum", "lazy", "bytes", "transient"],
)
def test_a_dead_letter_queue_that_keeps_its_messages_is_used_as_it_is(
    channel: Channel, settings: dict[str, Any]
) -> None:
    """If a dead-letter queue exists whose properties or arguments differ from those that mqtool would declare, mqtool
    uses the queue as it is, unless one of them would make it drop messages. For example, the queue can be transient.
    """
    theirs = channel.declare(DEAD._replace(**settings), remember=False)
    known = declare_dead_letter_queue(channel, DEAD)
    assert known == theirs
    assert declare_dead_letter_queue(channel, DEAD, known) == theirs


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x-message-ttl": 5}, "x-message-ttl"),
        ({"x-expires": 60_000}, "x-expires"),
        ({"x-dead-letter-exchange": "' but current is 'none"}, "x-dead-letter-exchange"),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "x" * 255}, "x-dead-letter-exchange"),
        ({"x-max-length": 5}, "x-max-length"),
        ({**QUORUM, "x-max-length": 5, "x-overflow": "drop-head"}, "x-max-length"),
        ({**QUORUM, "x-max-length": 5, "x-overflow": "reject-publish-dlx"}, "x-max-length"),
        ({"x-queue-mode": "lazy", "x-max-length-bytes": 0}, "x-max-length-bytes"),
        ({"x-queue-type": "stream", "x-max-age": "1D"}, "x-max-age"),
    ],
)
def test_a_dead_letter_queue_that_does_not_keep_its_messages_is_refused(
    channel: Channel, arguments: dict[str, Any], named: str
) -> None:
    """If a dead-letter queue exists with an argument that makes it drop its messages or move them to another queue,
    mqtool raises DeclaredDifferently. The error names this argument, and the hint says how to replace the queue.
    """
    channel.declare(DEAD._replace(arguments=arguments), remember=False)
    with pytest.raises(DeclaredDifferently) as refused:
        declare_dead_letter_queue(channel, DEAD)
    assert str(refused.value) == f"dead-letter queue 'jobs.dlq' exists with {named}, so it may not keep its messages"
    assert refused.value.hint == (
        "once it is empty: mqtool queue delete jobs.dlq; a limit that you want can be set by a policy"
    )
    assert channel.is_open


@pytest.mark.parametrize("before", [{}, QUORUM], ids=["same", "quorum"])
def test_a_dead_letter_queue_that_is_replaced_is_checked_again(channel: Channel, before: dict[str, Any]) -> None:
    """If a dead-letter queue that mqtool has used is deleted and then declared again with an argument that makes it
    drop messages, mqtool raises DeclaredDifferently when it next declares the queue.
    """
    channel.declare(DEAD._replace(arguments=before), remember=False)
    known = declare_dead_letter_queue(channel, DEAD)
    delete_queue(channel, "jobs.dlq")
    channel.connection.channel().declare(DEAD._replace(arguments={"x-max-length": 0}), remember=False)
    with pytest.raises(DeclaredDifferently, match="exists with x-max-length,"):
        declare_dead_letter_queue(channel, DEAD, known)


def test_nothing_is_published_to_a_dead_letter_queue_that_was_replaced(channel: Channel) -> None:
    """If somebody replaces the dead-letter queue of `worker` with one that drops messages beyond a limit, `worker`
    raises DeclaredDifferently for the next message that fails, and does not publish this message to the new queue.
    """
    retrying = Retrying(channel, RetryPolicy(), lambda _: None)
    retrying.dead_letter(JOB, "failed")
    assert channel.depth_of("jobs.dlq") == 1
    delete_queue(channel, "jobs.dlq")
    channel.connection.channel().declare(DEAD._replace(arguments={"x-max-length": 5}), remember=False)
    with pytest.raises(DeclaredDifferently, match="exists with x-max-length,"):
        retrying.dead_letter(JOB, "failed")
    assert channel.depth_of("jobs.dlq") == 0


@pytest.mark.parametrize("is_durable", [True, False])
def test_an_auto_delete_dead_letter_queue_is_refused(channel: Channel, *, is_durable: bool) -> None:
    """If a dead-letter queue exists as an auto-delete queue, the broker would delete it, with all its messages, when
    its last consumer ends. mqtool does not use such a queue: it raises DeclaredDifferently, and the error names
    auto_delete.
    """
    channel.declare(DEAD._replace(durable=is_durable, auto_delete=True), remember=False)
    with pytest.raises(DeclaredDifferently, match="exists with auto_delete, so it may not keep its messages"):
        declare_dead_letter_queue(channel, DEAD)


def test_a_dead_letter_queue_whose_arguments_cannot_be_read_is_refused(channel: Channel) -> None:
    """mqtool learns the arguments of an existing dead-letter queue from the broker's error when it declares the queue
    with other arguments. The broker truncates this error text to 255 bytes. If the queue's name is too long for the
    text to contain an argument's value, mqtool cannot know whether the queue would drop messages, and refuses to use
    it.
    """
    long = Queue("x" * 240 + ".dlq", durable=True)
    channel.declare(long._replace(arguments=QUORUM), remember=False)
    with pytest.raises(DeclaredDifferently, match="exists with x-queue-type, so it may not keep its messages"):
        declare_dead_letter_queue(channel, long)


def test_an_exclusive_dead_letter_queue_is_refused(channel: Channel) -> None:
    """If mqtool is to declare a dead-letter queue, but a queue with this name is exclusive to another connection,
    mqtool raises DeclaredDifferently, and the error says that the queue is exclusive.
    """
    with channel.connection.beside() as other:
        other.channel().declare(DEAD._replace(exclusive=True), remember=False)
        with pytest.raises(DeclaredDifferently, match="exclusive"):
            declare_dead_letter_queue(channel, DEAD)
