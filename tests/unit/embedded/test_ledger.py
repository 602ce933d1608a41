"""The Ledger class: it counts the memory of messages, streams and definitions, and encodes definitions for the disk."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.footprint import ENTRY
from mqtool.broker.embedded.model.ledger import (
    Ledger,
    decode_definition,
    default_memory_limit,
    definition_key,
    disk_free,
    encode_definition,
)
from mqtool.codecs.field_tables import Int32, Table, Value
from mqtool.message import MAX_DEPTH
from tests.unit.embedded.test_queue import message


class Reading(Ledger):
    """A ledger from which each row is read as a message of 100 bytes.

    Attributes:
        reported: what `when_changed` was called with.
        deleted: the rows that were deleted.
        written: the definitions that were written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reported: list[int] = []
        self.when_changed = self.reported.append
        self.deleted: list[int] = []
        self.written: list[tuple[str, bytes, bytes]] = []

    def read(self, rows: Sequence[int]) -> list[BacklogEntry]:
        return [BacklogEntry(message(bytes(100)), row) for row in rows]

    def removed(self, row: int, *, purged: bool = False) -> None:  # noqa: ARG002
        self.deleted.append(row)

    def write_definition(self, kind: str, key: bytes, value: bytes) -> None:
        self.written.append((kind, key, value))


@pytest.fixture
def ledger() -> Reading:
    return Reading()


MESSAGE = ENTRY + 100


def entered(ledger: Ledger, row: int = 0) -> BacklogEntry:
    entry = ledger.enter(message(bytes(100)), None)
    entry.row = row
    return entry


def test_the_memory_of_a_message_is_counted_until_it_leaves_its_queue(ledger: Reading) -> None:
    """A message counts towards the broker's memory use while it is in a queue, even if it was recovered from disk. When
    the broker drops a message, it also deletes the message from disk. If an error prevents the dead-lettering of a
    message that has left its queue, the message no longer counts towards memory use, but stays on disk.
    """
    first, second, third = entered(ledger, 1), entered(ledger, 2), entered(ledger)
    ledger.hold(first)
    assert ledger.held_bytes == 4 * MESSAGE
    for drop, entry in ((ledger.set_aside, first), (ledger.drop, second), (ledger.drop, third), (ledger.drop, first)):
        drop(entry)
    assert ledger.reported == [MESSAGE * count for count in (1, 2, 3, 4, 3, 2, 1, 0)]
    assert (ledger.held_bytes, ledger.deleted) == (0, [2, 1])


def test_messages_are_numbered_in_the_order_in_which_they_arrive(ledger: Reading) -> None:
    """The broker numbers messages in the order in which they arrive, starting at 1, and keeps the expiration time of
    each message, if any.
    """
    entries = [ledger.enter(message(body), when) for body, when in ((b"0", None), (b"1", 17), (b"2", None))]
    assert [(entry.position, entry.expires_at, entry.message.body) for entry in entries] == [
        (1, None, b"0"),
        (2, 17, b"1"),
        (3, None, b"2"),
    ]


def test_changes_of_memory_use_are_reported_to_the_broker_only_above_a_limit(ledger: Reading) -> None:
    """An object of the broker (class Ledger) counts the memory that messages and clients take. To save time, it
    reports a change to the broker only if the new amount is above a limit (the attribute quiet_bytes).
    """
    ledger.quiet_bytes = 2 * MESSAGE
    entries = [entered(ledger) for _ in range(4)]
    for entry in entries:
        ledger.drop(entry)
    ledger.hold_bytes(2 * MESSAGE)
    ledger.hold_bytes(1)
    assert ledger.reported == [3 * MESSAGE, 4 * MESSAGE, 3 * MESSAGE, 2 * MESSAGE + 1]


def test_definitions_count_towards_the_brokers_memory_use(ledger: Reading) -> None:
    """Queues, exchanges and bindings count towards the broker's memory use. Their memory is also counted separately,
    without that of messages.
    """
    ledger.hold_bytes(100)
    ledger.hold_bytes(20, definition=True)
    ledger.hold_bytes(5, definition=True)
    assert (ledger.held_bytes, ledger.definition_bytes) == (125, 25)
    ledger.hold_bytes(-20, definition=True)
    assert (ledger.held_bytes, ledger.definition_bytes) == (105, 5)


def test_messages_are_paged_out_only_while_memory_is_short(ledger: Reading) -> None:
    """The broker pages out a stored message only while messages take more memory than a limit (the attribute
    roomy_bytes, by default 32 MiB). A paged-out message takes 40 bytes of memory. After it is read back, it takes as
    much memory as before.
    """
    ledger.roomy_bytes = 3 * MESSAGE
    entries = [entered(ledger, row) for row in range(1, 6)]
    assert [ledger.page_out(entry) for entry in entries] == [True, True, False, False, False]
    assert ledger.held_bytes == 3 * MESSAGE + 80
    assert [entry.position for entry in ledger.page_in([1, 2])] == [1, 2]
    assert ledger.held_bytes == 5 * MESSAGE
    assert [ledger.page_out(entry) for entry in entries] == [True, True, False, False, False]
    ledger.drop_purged(2)
    assert (ledger.held_bytes, ledger.deleted) == (3 * MESSAGE + 40, [2])
    assert ledger.reported[-1] == ledger.held_bytes
    short = Reading()
    assert short.roomy_bytes == 32 << 20
    short.roomy_bytes = MESSAGE - 1
    assert short.page_out(entered(short, 1))


def test_a_dead_letter_is_never_paged_out(ledger: Reading) -> None:
    """A dead letter stays in memory, because its x-death header on disk has no milliseconds."""
    ledger.roomy_bytes = 0
    entry = entered(ledger, 1)
    entry.message.is_dead = True
    assert not ledger.page_out(entry)
    assert ledger.held_bytes == MESSAGE


def test_without_a_data_directory_the_segments_of_streams_count_towards_memory_use(ledger: Reading) -> None:
    """Without a data directory, the segments of a stream are kept in memory, and their bytes count towards the broker's
    memory use. A write at a position in a segment replaces everything from this position on. Bytes that are replaced,
    cut off, or deleted with their segment no longer count.
    """
    segments = ledger.segments(1)
    assert [*segments.existing()] == []
    segment = segments.new(0)
    segment.write(0, b"0123456789")
    segment.write(4, b"abc")
    assert (segment.size(), segment.read(0, 100), segment.read(2, 3)) == (7, b"0123abc", b"23a")
    assert ledger.held_bytes == 7
    segment.sync()
    segment.close()
    segment.cut(5)
    assert (segment.read(0, 100), ledger.held_bytes) == (b"0123a", 5)
    segment.delete()
    segments.delete()
    assert (segment.size(), ledger.held_bytes) == (0, 0)


def test_definitions_with_different_names_have_different_keys() -> None:
    """In the database, the key of a definition consists of the names that identify it, such as the names of a queue and
    of its virtual host. Each name is preceded by its length, so definitions with different names have different keys. A
    name that is not valid UTF-8 keeps its bytes.
    """
    assert definition_key(["/", "q\udce9"]) == b"\0\0\0\1/\0\0\0\2q\xe9"
    assert definition_key([b"ab", ""]) == b"\0\0\0\2ab\0\0\0\0"
    assert definition_key(["a", "b"]) != definition_key(["ab"]) != definition_key(["", "ab"])


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        ({"name": "q\udce9".encode(errors="surrogateescape")}, {"name": "q\udce9"}),
        ({"limits": {"a": [b"x\xff", {"b": b"y"}]}}, {"limits": {"a": ["x\udcff", {"b": "y"}]}}),
        ({"arguments": {"a": b"x\xff"}}, {"arguments": {"a": b"x\xff"}}),
        ({"definition": {"a": [b"x\xff"]}}, {"definition": {"a": [b"x\xff"]}}),
        ({"key": Int32(5), "durable": True}, {"key": 5, "durable": True}),
    ],
)
def test_definitions_are_read_back_with_names_as_strings_and_unchanged_arguments(value: Table, decoded: Table) -> None:
    """When the broker reads a definition back from disk, each name in it is a string (str), even if the name is not
    valid UTF-8. The arguments of a queue and the definition of a policy are as the client sent them: bytes are still
    bytes.
    """
    assert decode_definition(encode_definition(value)) == decoded


def nested(depth: int) -> Table:
    value: Value = Int32(0)
    for _ in range(depth):
        value = {"a": value}
    return cast(Table, value)


@pytest.mark.parametrize("value", [nested(MAX_DEPTH + 10), {"a": 1 << 70}, {"a" * 300: True}])
def test_a_definition_that_could_not_be_read_back_is_refused(ledger: Reading, value: Any) -> None:
    """If the arguments of a declaration are nested too deeply, or contain a value or name that cannot be encoded, the
    broker refuses the declaration with error 406, and stores nothing. Arguments can be nested 8 levels deeper than
    the headers of a message.
    """
    with pytest.raises(ChannelException, match="a definition cannot be stored: ") as error:
        ledger.save("queue", ("/", "q"), value)
    assert error.value.code == 406
    assert ledger.written == []
    ledger.save("queue", ("/", "q"), {"arguments": nested(MAX_DEPTH + 8)})
    assert [(kind, key) for kind, key, _ in ledger.written] == [("queue", definition_key(["/", "q"]))]
    assert decode_definition(ledger.written[0][2]) == {"arguments": nested(MAX_DEPTH + 8)}


def test_the_default_memory_limit_is_40_percent_of_the_smallest_containers_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default memory limit is 40% of the machine's memory. If the broker runs in a container with less memory, or
    in nested containers, the limit is 40% of the memory of the smallest container.
    """
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 50}.__getitem__)
    files = []
    for name, content in (("a", "max"), ("b", "40000"), ("c", "30000"), ("d", "60000")):
        (tmp_path / name).write_text(content)
        files.append(str(tmp_path / name))
    assert default_memory_limit([str(tmp_path / "missing"), *files]) == 12_000
    assert default_memory_limit([files[3], files[0]]) == 20_000


def test_the_free_disk_space_does_not_include_the_space_reserved_for_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The free disk space that the broker reports does not include the space that the file system reserves for root."""
    asked = []

    def statvfs(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=1024, f_bsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert (disk_free(tmp_path), Ledger().disk_free()) == (3072, 3072)
    assert asked == [tmp_path, Path("/")]


def test_without_a_data_directory_everything_counts_as_stored_immediately() -> None:
    """Without a data directory, the broker writes neither definitions nor messages to disk. It treats them as stored
    immediately, so clients do not wait.
    """
    ledger, called = Ledger(), []
    ledger.after_commit(lambda: called.append(True))
    assert called == [True]
    asyncio.run(asyncio.wait_for(ledger.stored(), 60))
    entry = entered(ledger)
    ledger.added(1, entry)
    assert (entry.row, ledger.new_key(), ledger.read([1]), ledger.on_disk) == (0, 0, [], False)
    assert (ledger.group, ledger.definitions_saved, ledger.quiet_bytes) == (1, 0, -1)
    assert ledger.most_bytes == ledger.most_definition_bytes == float("inf")
    deleted = []
    ledger.discard_log(cast(Any, SimpleNamespace(delete_files=lambda: deleted.append(True))))
    assert deleted == [True]
