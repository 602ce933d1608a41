"""The input of publishing commands, and how it is split into messages."""

import json
import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.cli import stopping
from mqtool.cli.options import DelayOptions, MessageOptions, Publishing
from mqtool.cli.options.broker_options import PublishingBroker
from mqtool.cli.pipe import source
from mqtool.cli.pipe.source import Addressing, Input, delimited, read_messages
from mqtool.cli.values import header
from mqtool.errors import BadData, UsageError
from mqtool.message import InBatches, Message

delimiters = st.sampled_from([b"\n", b"\0", b";", b"--", b"aba", b"\r\n", b"aab"])


@st.composite
def cut_input(draw: st.DrawFn) -> tuple[bytes, list[bytes | None], bytes]:
    """An input full of delimiters, the same in chunks with pauses between, and the delimiter."""
    delimiter = draw(delimiters)
    data = b"".join(draw(st.lists(st.sampled_from([delimiter, delimiter[:1], b"a", b"b", b"-", b"\xff", b"\r"]))))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    chunks: list[bytes | None] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        chunks += [data[start:end]] if end > start else [None]
    return data, chunks, delimiter


@given(cut_input())
def test_input_is_split_at_delimiters_however_it_arrives(given: tuple[bytes, list[bytes | None], bytes]) -> None:
    """A publishing command splits its input at each delimiter, however the input is divided when it arrives. A
    delimiter at the end of the input does not start an empty message.
    """
    data, chunks, delimiter = given
    expected = data.split(delimiter)
    if not expected[-1]:
        expected.pop()

    assert [piece for piece in delimited(iter(chunks), delimiter) if piece is not None] == expected


@given(cut_input())
def test_reading_the_input_yields_none_while_the_input_pauses(given: tuple[bytes, list[bytes | None], bytes]) -> None:
    """While the input of a publishing command pauses, reading the input yields None instead of a message, so that the
    command can process confirms.
    """
    _, chunks, delimiter = given
    assert list(delimited(iter(chunks), delimiter)).count(None) == chunks.count(None)


def test_a_pause_does_not_end_an_input_that_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that reads its input to the end, such as `recording scrub`, waits if a non-blocking pipe has no data,
    and continues when data arrives.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"one")
    later = [lambda: os.close(writer), lambda: os.write(writer, b"two")]
    wait = select.select

    def waiting(*descriptors: list[int]) -> object:
        later.pop()()
        return wait(*descriptors)

    monkeypatch.setattr(select, "select", waiting)
    assert [*source.whole(reader)] == [b"one", b"two"]
    os.close(reader)


def test_an_input_line_is_published_as_soon_as_it_is_complete() -> None:
    """A publishing command publishes each input line, such as a line from `tail -f`, as soon as the line is complete,
    without waiting for the next one.
    """
    pieces = delimited(iter([b"one\ntw", None, b"o\n"]), b"\n")
    assert next(pieces) == b"one"
    assert next(pieces) is None
    assert next(pieces) == b"two"


@pytest.mark.parametrize(
    ("text", "key_and_value"),
    [
        ("format=pdf", ("format", "pdf")),
        ("empty=", ("empty", "")),
        ("equation=a=b", ("equation", "a=b")),
        ("a:b=c", ("a:b", "c")),
        ("n:=5", ("n", 5)),
        ("yes:=true", ("yes", True)),
        ("none:=null", ("none", None)),
        ('table:={"a": [1, "2"]}', ("table", {"a": [1, "2"]})),
        ('text:="5"', ("text", "5")),
    ],
)
def test_the_headers_of_a_publishing_command_are_text_or_json(text: str, key_and_value: tuple[str, object]) -> None:
    """In a publishing command, `-H key=text` sets a header to text, and `-H key:=json` sets it to a JSON value."""
    assert header(text) == key_and_value


def asked(words: list[str], options: MessageOptions) -> Publishing:
    return Publishing(options=options, delays=DelayOptions(), broker=PublishingBroker(), words=words)


def only(words: list[str], options: MessageOptions, addressing: Addressing | None = None) -> Message:
    [message] = read_messages(asked(words, options), addressing or Addressing(), default=b"")
    assert message is not None
    return message


def test_words_on_the_command_line_are_joined_into_one_message() -> None:
    """A publishing command joins the words on its command line with spaces into one message. It does not change their
    bytes, even if they are not valid UTF-8.
    """
    assert only(["Hello", "there"], MessageOptions()).body == b"Hello there"
    assert only([os.fsdecode(b"caf\xe9")], MessageOptions()).body == b"caf\xe9"


def test_options_set_headers_properties_and_persistence() -> None:
    """In a publishing command, `-H` sets headers, `--property` sets properties, including the message id, and
    `--persistent` sets delivery mode 2.
    """
    options = MessageOptions(
        headers=[("a", 1), ("b", "x")], properties=[("message_id", "mine"), ("type", "t")], persistent=True
    )
    message = only(["x"], options, Addressing("e", "k"))
    assert message.message_id == "mine"
    assert message.properties == {"headers": {"a": 1, "b": "x"}, "type": "t", "delivery_mode": 2}
    assert (message.exchange, message.routing_key) == ("e", "k")


def test_unconfirmed_messages_are_saved_before_unread_lines(tmp_path: Path) -> None:
    """If `send --failed-to FILE` fails, it writes the remaining messages to FILE, in the order of the input: first
    those that were published but not confirmed, then the lines that were not yet read.
    """
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(b"%d\n" % number for number in range(600)))
    source = read_messages(asked([], MessageOptions(file=lines, lines=True)), Addressing(), default=b"")
    assert isinstance(source, InBatches)

    lots = source.batches()
    next(lots).clear()
    del next(lots)[:100]

    first, *_, last = [message.body for message in source.rest(256 + 100)]
    assert (first, last) == (b"356", b"599")


@pytest.mark.parametrize(("published", "kept"), [(1, [b"1", b"2"]), (2, [b"2"])])
def test_the_option_failed_to_saves_the_message_that_was_read_but_not_published(
    published: int, kept: list[bytes], tmp_path: Path
) -> None:
    """If `send --failed-to FILE` fails, it saves the unpublished part of its input in FILE. This part begins with the
    last message that was read if that message still waits to be published, for example because the window of
    unconfirmed messages is full. If not, it begins with the next message.
    """
    lines = tmp_path / "lines"
    lines.write_bytes(b"0\n1\n2\n")
    options = MessageOptions(file=lines, lines=True, failed_to=tmp_path / "failed")
    source = read_messages(asked([], options), Addressing(), default=b"")

    messages = iter(source)
    next(messages)
    next(messages)

    assert [message.body for message in source.rest(published)] == kept


@pytest.mark.parametrize(
    "options",
    [MessageOptions(lines=True), MessageOptions(as_json=True), MessageOptions()],
    ids=["lines", "NDJSON", "one message"],
)
def test_the_option_failed_to_saves_the_end_of_a_file_after_a_signal(
    options: MessageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `send -f INPUT --failed-to FILE` is stopped with Ctrl-C, it saves in FILE all messages of INPUT that were not
    sent, even if INPUT does not end with a newline.
    """
    file = tmp_path / "input"
    file.write_bytes(b'{"body": "last"}')
    options = replace(options, file=file, failed_to=tmp_path / "failed")
    source = read_messages(asked([], options), Addressing(), default=b"")
    monkeypatch.setattr(stopping, "requested", lambda: signal.SIGINT)

    assert [*source] == []
    [kept] = source.rest(0)
    assert b"last" in kept.body


@pytest.fixture
def piped(tmp_path: Path) -> tuple[int, Input]:
    """The writing end of a pipe, and the input of `send --failed-to`, which has read one line, b"0", from it."""
    os.mkfifo(tmp_path / "pipe")
    writing = os.open(tmp_path / "pipe", os.O_RDWR)
    options = MessageOptions(file=tmp_path / "pipe", lines=True, failed_to=tmp_path / "failed")
    read = read_messages(asked([], options), Addressing(), default=b"")
    os.write(writing, b"0\n")
    next(iter(read))
    return writing, read


def test_the_option_failed_to_saves_the_lines_of_a_writer_that_pauses_briefly(
    piped: tuple[int, Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `send --failed-to FILE` cannot publish a line from a pipe, it also saves the lines that the pipe's writer
    writes later, if the writer pauses only briefly (0.05 s in this test). Therefore, a program such as `receive`, which
    writes each line once the previous one has been read, loses no message.
    """
    monkeypatch.setattr(source, "LOOK_UP", 60.0)
    writing, read = piped

    def write_the_rest() -> None:
        os.write(writing, b"1\n")
        os.close(writing)

    later = threading.Timer(0.05, write_the_rest)
    later.start()
    assert [message.body for message in read.rest(0)] == [b"0", b"1"]
    later.join()


def test_the_option_failed_to_does_not_wait_for_the_end_of_a_pipe(piped: tuple[int, Input]) -> None:
    """If `send --failed-to FILE` cannot publish a line from a pipe whose writer writes nothing more but does not end,
    `send` saves what it has read, and ends.
    """
    writing, read = piped
    assert [message.body for message in read.rest(0)] == [b"0"]
    os.close(writing)


def timed(monkeypatch: pytest.MonkeyPatch, steps: Iterable[float | bytes]) -> Input:
    """The lines of an input: a step is a part of it, or the seconds that pass before the next read finds nothing."""
    now = [0.0]
    monkeypatch.setattr(source, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def chunks() -> Iterator[bytes | None]:
        for step in steps:
            now[0] += step if isinstance(step, float) else 0.0
            yield None if isinstance(step, float) else step

    return Input(None if line is None else Message(line) for line in delimited(chunks(), b"\n"))


def test_the_option_failed_to_does_not_follow_a_slow_writer_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `send --failed-to FILE` cannot publish a line from a pipe whose writer writes a line now and then and never
    ends, such as `tail -f`, `send` does not wait for the end of the pipe. It waits for up to 40 pauses of 5 ms, saves
    the lines that have arrived by then, and ends.
    """
    read = timed(monkeypatch, cycle([b"more\n", 0.0, 0.005]))
    assert len([*read.rest(0)]) == 41


def test_a_long_line_that_arrives_in_parts_after_a_failed_line_is_also_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `send --failed-to FILE` cannot publish a line from a pipe, it saves this line in FILE, and also a following
    line that is too long for the pipe's buffer and therefore arrives in several parts.
    """
    read = timed(monkeypatch, [b"0\n", *[0.002, b"x" * 600] * 100, b"\n"])
    assert [len(message.body) for message in read.rest(0)] == [1, 60_000]


def test_a_line_with_an_invalid_routing_key_is_saved_if_an_option_overrides_the_key(tmp_path: Path) -> None:
    """If `send --failed-to FILE` fails, it saves in FILE those unsent messages of its input that come before the first
    line that can never be sent, such as a line whose routing key is too long. If the option `-r` overrides the routing
    keys of all lines, a line whose own key is too long can be sent, so it is saved like any other.
    """
    file = tmp_path / "input"
    file.write_text('{"body": "1"}\n' + json.dumps({"body": "2", "routing_key": "k" * 300}) + '\n{"body": "3"}\n')
    options = MessageOptions(file=file, as_json=True, failed_to=tmp_path / "failed")
    overridden, plain = (read_messages(asked([], options), Addressing(None, key), default=b"") for key in ("q", None))

    assert [message.body for message in overridden.rest(0, 131_072)] == [b"1", b"2", b"3"]
    assert overridden.error is None
    assert [message.body for message in plain.rest(0, 131_072)] == [b"1"]
    assert str(plain.error) == "line 2 cannot be sent: the routing key is 300 bytes long; AMQP allows 255"


def test_each_published_message_has_its_own_id() -> None:
    """Each message that mqtool publishes gets a message id of its own, so that a consumer can recognise a duplicate if
    mqtool publishes the message again after a reconnection.
    """
    ids = {only(["x"], MessageOptions()).message_id for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("sshd[7]: error: no", "sshd.error"),
        ("nothing of the kind", "unknown.unknown"),
        ("cron[1]: odd?", "cron.unknown"),
    ],
)
def test_the_option_key_pattern_fills_the_routing_key(line: str, key: str) -> None:
    """The regular expression of `--key-pattern` is matched against each message. The text of its named groups fills the
    placeholders in the routing key, such as {app}. If a group does not match, its placeholder becomes "unknown".
    """
    import re

    options = MessageOptions(key_pattern=re.compile(r"(?P<app>\w+)\[\d+\]: (?:(?P<level>\w+):)?"))
    message = only([line], options, Addressing(None, "{app}.{level}"))
    assert (message.routing_key, message.body) == (key, line.encode())


def test_a_routing_key_from_key_pattern_is_truncated_to_255_bytes() -> None:
    """If `--key-pattern` produces a routing key of more than 255 bytes, the key is truncated to at most 255 bytes, but
    not in the middle of a character.
    """
    import re

    options = MessageOptions(key_pattern=re.compile("(?P<all>.*)"))
    message = only(["é" * 200], options, Addressing(None, "{all}"))
    assert message.routing_key == "é" * 127


def test_words_and_an_input_option_cannot_be_combined() -> None:
    """`send -l WORD` raises UsageError, because with `-l`, messages are read from the input and not from the command
    line.
    """
    with pytest.raises(UsageError):
        read_messages(asked(["x"], MessageOptions(lines=True)), Addressing(), default=b"")


def test_an_input_line_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an input line is larger than the limit, a publishing command raises BadData before it has read the whole line.
    The command still publishes the lines before this one.
    """
    monkeypatch.setattr(source, "LARGEST", 1 << 20)
    pieces = delimited(iter([b"short\n", *[b"x" * 1000] * 2000]), b"\n")
    assert next(pieces) == b"short"
    with pytest.raises(BadData, match="larger than 1 MiB"):
        next(pieces)


def test_pauses_in_the_input_are_reported_immediately_and_again_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no input arrives, a publishing command immediately tells its publisher that there is no message, and the
    publisher sends what it has collected. If there is still no line a moment later, the command tells the publisher
    again, and the publisher can then wait for the broker's confirms.
    """
    reading, writing = os.pipe()
    chunks = source.chunks(reading)
    os.write(writing, b"first\n")
    assert next(chunks) == b"first\n"
    assert next(chunks) is None
    assert next(chunks) is None
    monkeypatch.setattr(source, "_SOON", 60.0)
    os.write(writing, b"second\n")
    assert [next(chunks), next(chunks)] == [b"second\n", None]
    later = threading.Timer(0.05, os.write, (writing, b"third\n"))
    later.start()
    assert next(chunks) == b"third\n"
    later.join()
    os.close(writing)
    assert [each for each in chunks if each is not None] == []
    os.close(reading)
