"""Cutting the input into messages."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.cli.options import DelayOptions, MessageOptions, Publishing
from mqtool.cli.options.broker_options import PublishingBroker
from mqtool.cli.pipe import source
from mqtool.cli.pipe.source import Addressing, delimited, read_messages
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
def test_any_chunking_gives_the_same_pieces(given: tuple[bytes, list[bytes | None], bytes]) -> None:
    """As bytes.split would have it; only that a delimiter at the end ends the last piece and starts none."""
    data, chunks, delimiter = given
    expected = data.split(delimiter)
    if not expected[-1]:
        expected.pop()

    assert [piece for piece in delimited(iter(chunks), delimiter) if piece is not None] == expected


@given(cut_input())
def test_pauses_are_passed_on(given: tuple[bytes, list[bytes | None], bytes]) -> None:
    """Whoever publishes must hear that nothing comes right now, to look after confirms."""
    _, chunks, delimiter = given
    assert list(delimited(iter(chunks), delimiter)).count(None) == chunks.count(None)


def test_a_piece_comes_as_soon_as_its_delimiter_does() -> None:
    """A line of `tail -f` is not held back until the next one."""
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
def test_headers(text: str, key_and_value: tuple[str, object]) -> None:
    """key=text is text, whatever it looks like; key:=json has the type that JSON says."""
    assert header(text) == key_and_value


def asked(words: list[str], options: MessageOptions) -> Publishing:
    return Publishing(options=options, delays=DelayOptions(), broker=PublishingBroker(), words=words)


def only(words: list[str], options: MessageOptions, addressing: Addressing | None = None) -> Message:
    [message] = read_messages(asked(words, options), addressing or Addressing(), default=b"")
    assert message is not None
    return message


def test_words_are_one_message() -> None:
    """Joined as echo joins them, and bytes that are not UTF-8 stay what they are."""
    assert only(["Hello", "there"], MessageOptions()).body == b"Hello there"
    assert only([os.fsdecode(b"caf\xe9")], MessageOptions()).body == b"caf\xe9"


def test_what_the_options_say_is_on_the_message() -> None:
    """Headers, properties and --persistent; a message id of the user's own is kept."""
    options = MessageOptions(
        headers=[("a", 1), ("b", "x")], properties=[("message_id", "mine"), ("type", "t")], persistent=True
    )
    message = only(["x"], options, Addressing("e", "k"))
    assert message.message_id == "mine"
    assert message.properties == {"headers": {"a": 1, "b": "x"}, "type": "t", "delivery_mode": 2}
    assert (message.exchange, message.routing_key) == ("e", "k")


def test_what_is_left_of_a_lot_comes_before_the_rest(tmp_path: Path) -> None:
    """Whoever publishes a lot takes out of it what was sent; --failed-to gets what stays in it, and what follows."""
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(b"%d\n" % number for number in range(600)))
    source = read_messages(asked([], MessageOptions(file=lines, lines=True)), Addressing(), default=b"")
    assert isinstance(source, InBatches)

    lots = source.batches()
    next(lots).clear()
    del next(lots)[:100]

    first, *_, last = [message.body for message in source.rest()]
    assert (first, last) == (b"356", b"599")


def test_each_message_has_an_id_of_its_own() -> None:
    """So that a duplicate after a reconnection can be told."""
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
def test_a_key_pattern_fills_the_routing_key(line: str, key: str) -> None:
    """From the line's own fields; a line, or a field, that does not match is 'unknown', and is sent all the same."""
    import re

    options = MessageOptions(key_pattern=re.compile(r"(?P<app>\w+)\[\d+\]: (?:(?P<level>\w+):)?"))
    message = only([line], options, Addressing(None, "{app}.{level}"))
    assert (message.routing_key, message.body) == (key, line.encode())


def test_a_key_is_cut_to_what_amqp_allows() -> None:
    """255 bytes, never in the middle of a character."""
    import re

    options = MessageOptions(key_pattern=re.compile("(?P<all>.*)"))
    message = only(["é" * 200], options, Addressing(None, "{all}"))
    assert message.routing_key == "é" * 127


def test_an_input_and_words_exclude_each_other() -> None:
    """Nobody could say which of them was meant."""
    with pytest.raises(UsageError):
        read_messages(asked(["x"], MessageOptions(lines=True)), Addressing(), default=b"")


def test_an_endless_line_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when the memory is full. What came before it is yielded."""
    monkeypatch.setattr(source, "LARGEST", 1 << 20)
    pieces = delimited(iter([b"short\n", *[b"x" * 1000] * 2000]), b"\n")
    assert next(pieces) == b"short"
    with pytest.raises(BadData, match="larger than 1 MiB"):
        next(pieces)
