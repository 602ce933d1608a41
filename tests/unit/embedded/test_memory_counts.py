"""How much memory the embedded broker counts for messages, definitions, stored offsets and publishing ids."""

from collections.abc import Callable
from typing import Any

import pytest

from mqtool.broker.embedded.model import footprint
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.broker.embedded.model.sectioned import parse
from mqtool.broker.embedded.model.stored_offsets import PublishingIds, StoredOffsets
from mqtool.codecs.amqp10_message import Amqp10Message, data_section
from mqtool.codecs.field_tables import Int32, Table
from tests.unit.embedded.test_queue import message

#: A value of any type, an item of a list, and an entry of a table.
VALUE, ITEM, ENTRY = 60, 8, 150


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, VALUE),
        (Int32(5), VALUE),
        ("", VALUE),
        ("abc", VALUE + 3),
        (b"abcd", VALUE + 4),
        ([], VALUE),
        (["a", Int32(1)], VALUE + 2 * (ITEM + VALUE) + 1),
        ({}, VALUE),
        ({"key": "abc", "k": True}, VALUE + 2 * (ENTRY + VALUE) + 3 + 3 + 1),
        ({"k": [{"a": "b"}]}, 3 * VALUE + ENTRY + 1 + ITEM + ENTRY + 1 + VALUE + 1),
    ],
    ids=str,
)
def test_a_decoded_value_takes_memory_for_each_of_its_parts(value: Any, size: int) -> None:
    """The memory that the broker counts for headers or arguments includes each value, each key of a table and each
    character of a string, however deeply they are nested.
    """
    assert footprint.of_value(value) == size


def with_headers(length: int) -> BrokerMessage:
    """Return a message whose encoded headers have this many bytes."""
    empty = message(b"body", headers={"h": ""})
    return message(b"body", headers={"h": "x" * (length - len(empty.header.raw))})


def test_a_message_takes_memory_for_its_body_and_large_headers() -> None:
    """For each message, the broker counts the size of the body and a fixed amount of memory, which covers headers of
    up to 256 bytes. It counts larger headers twice: as encoded bytes and as decoded values.
    """
    assert footprint.of_message(message(b"")) == footprint.ENTRY
    assert footprint.of_message(with_headers(256)) == footprint.ENTRY + 4
    large = with_headers(257)
    for _ in range(2):
        assert footprint.of_message(large) == footprint.ENTRY + 4 + 257 + footprint.of_value(large.headers)


def test_a_message_from_amqp_1_0_takes_memory_for_its_sections() -> None:
    """If a message that was published over AMQP 1.0 has large application properties, the broker counts not only the
    memory of its headers and body, but also that of the encoded sections that precede the body.
    """
    sent = Amqp10Message(application_properties={"p": "x" * 300}, body=data_section(b"body"))
    found = parse(sent.encode()).to("", "q", PROFILES[DEFAULT])
    assert found.section_bytes > 300
    others = footprint.ENTRY + len(found.body) + len(found.header.raw) + footprint.of_value(found.headers)
    assert footprint.of_message(found) == others + found.section_bytes


ARGUMENTS: Table = {"a": "b"}
OF_ARGUMENTS = VALUE + ENTRY + 1 + VALUE + 1


@pytest.mark.parametrize(
    ("measure", "arguments", "size"),
    [
        (footprint.of_queue, ("classic", "name", ARGUMENTS), footprint.QUEUE + 4 + OF_ARGUMENTS),
        (footprint.of_queue, ("quorum", "", {}), footprint.QUEUE + VALUE),
        (footprint.of_queue, ("stream", "name", ARGUMENTS), footprint.STREAM + 4 + OF_ARGUMENTS),
        (footprint.of_exchange, ("name", ARGUMENTS), footprint.EXCHANGE + 4 + OF_ARGUMENTS),
        (footprint.of_binding, ("direct", "a.b.c", ARGUMENTS), footprint.BINDING + 5 + OF_ARGUMENTS),
        (footprint.of_binding, ("topic", "a.b.c", ARGUMENTS), footprint.BINDING + 5 + 3 * 320 + OF_ARGUMENTS),
        (footprint.of_binding, ("topic", "", {}), footprint.BINDING + 320 + VALUE),
        (footprint.of_global_parameter, ("name", "text!"), 300 + 4 + 5),
        (footprint.of_global_parameter, ("name", None), 0),
        (footprint.of_properties, ({"p": "x" * (2000 - 2 * VALUE - ENTRY - 1)},), 0),
        (footprint.of_properties, ({"p": "x" * (2001 - 2 * VALUE - ENTRY - 1)},), 2001),
    ],
)
def test_definitions_take_memory_for_their_names_and_arguments(
    measure: Callable[..., int], arguments: tuple[Any, ...], size: int
) -> None:
    """The broker counts memory for queues, streams, exchanges, bindings and global parameters, and for their names,
    keys and arguments. A binding of a topic exchange takes 320 additional bytes for each word of its key. The
    properties that a client sends when it connects are counted only if they take more than 2,000 bytes.
    """
    assert measure(*arguments) == size


def test_the_names_of_stored_offsets_and_producers_take_memory() -> None:
    """A stream stores the offsets of consumers and the publishing ids of producers under their names. The broker
    counts memory for each name until it forgets the name. If another offset or id is stored under the same name
    later, the name is still counted only once.
    """
    ledger = Ledger()
    offsets, ids = StoredOffsets(ledger), PublishingIds(ledger)
    for offset in (0, 5):
        offsets.store("reader", offset)
        ids.publish("producer", offset)
    assert (offsets, ids) == ({"reader": 5}, {"producer": 5})
    assert ledger.held_bytes == 206 + 208
    offsets.store("other", 6)
    offsets.forget("reader")
    assert (offsets, ledger.held_bytes) == ({"other": 6}, 205 + 208)
    offsets.store("a", 1)
    offsets.forget_all()
    assert (offsets, ledger.held_bytes) == ({}, 208)
    ids.forget_all()
    assert (ids, ledger.held_bytes) == ({}, 0)


def test_offsets_of_deleted_messages_are_forgotten() -> None:
    """If the oldest messages of a stream are deleted, the broker forgets stored offsets that are smaller than the
    offset of the first remaining message.
    """
    ledger = Ledger()
    offsets = StoredOffsets(ledger)
    for name, offset in (("a", 4), ("b", 5), ("c", 3), ("d", 6)):
        offsets.store(name, offset)
    offsets.forget_before(5)
    assert (offsets, ledger.held_bytes) == ({"b": 5, "d": 6}, 2 * 201)


def test_only_the_publishing_ids_of_the_most_recent_producers_are_kept() -> None:
    """A stream keeps the publishing ids of a limited number of producers. It forgets those of the producers that have
    not published for the longest time.
    """
    ledger = Ledger()
    ids = PublishingIds(ledger)
    for number, name in enumerate("abcab"):
        ids.publish(name, number)
    ids.keep_last(3)
    assert [*ids.items()] == [("c", 2), ("a", 3), ("b", 4)]
    ids.keep_last(2)
    assert ([*ids.items()], ledger.held_bytes) == ([("a", 3), ("b", 4)], 2 * 201)
