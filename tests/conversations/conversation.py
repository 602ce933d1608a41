"""Conversations with a broker: the lines of the text files in this directory, and how they are held at a place.

    == A rejected message goes to the dead-letter queue (KIND)
    KIND = classic | quorum
    A >> declare("jobs", "KIND", dead_letter_exchange="", dead_letter_routing_key="dead")
    A >> publish("jobs", "1", headers={"n": l(5)})
    <> 3.10, 4.0 if quorum: the reason why the embedded broker answers differently here than RabbitMQ

A step `PEER >> operation(...)` is something that a peer says: peers whose names end with 10 speak AMQP 1.0, those whose
names begin with `stream` the stream protocol, and all others AMQP 0-9-1 (see peers.py). `wait(SECONDS)` is a step, too.
What the peers hear after each step is not in these files but in tests/recordings/VERSION. `KIND = classic | quorum`
repeats a conversation with each value. `from 4.0` leaves it out for older versions. A difference between the embedded
broker and RabbitMQ is a line below its step: versions, the values with which it occurs (all, if none), and the reason.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from mqtool.codecs import field_tables
from mqtool.codecs.amqp10_values import Described, Symbol, ULong, UuidText
from tests.conversations.peers import COMPOSITES, Pairs, Peer, Peer091, Peer10, StreamPeer, composite

SUBJECTS = sorted(path.stem for path in Path(__file__).parent.glob("*.txt"))

#: How typed values are written, e.g. `l(5)` for a signed 64-bit integer in a header.
_TYPES: dict[str, Any] = {
    "b": field_tables.Int8,
    "B": field_tables.UInt8,
    "s": field_tables.Int16,
    "u": field_tables.UInt16,
    "I": field_tables.Int32,
    "i": field_tables.UInt32,
    "l": field_tables.Int64,
    "L": field_tables.Int64L,
    "f": field_tables.Float32,
    "T": field_tables.Timestamp,
    "x": bytearray,
    "pairs": Pairs,
    "symbol": Symbol,
    "uint": field_tables.UInt32,
    "ulong": ULong,
    "uuid": UuidText,
}


class Step(NamedTuple):
    """Something that a peer says.

    Attributes:
        differs: by version, the reason why the embedded broker answers differently than RabbitMQ.
    """

    text: str
    peer: str
    operation: str
    arguments: list[Any]
    named: dict[str, Any]
    differs: dict[str, str]


class Conversation(NamedTuple):
    title: str
    steps: list[Step]
    oldest: tuple[int, ...]


class Heard(NamedTuple):
    """A step, and what each peer heard after it."""

    conversation: str
    step: int
    said: str
    heard: list[str]


def recording(subject: str, version: str) -> Path:
    """Return the file with what was heard from a version of RabbitMQ. It is missing if nothing was said."""
    return Path(__file__).parents[1] / "recordings" / version / f"{subject}.ndjson"


def recorded(subject: str, version: str) -> list[Heard]:
    path = recording(subject, version)
    return [Heard(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


class Place(Protocol):
    """Where conversations are held: an empty virtual host of a broker."""

    vhost: str

    def connect(self, name: str, protocol: type[Peer]) -> Peer: ...

    def readable(self, peers: list[Peer]) -> list[Peer]:
        """Wait until nothing more arrives, or something has arrived; return the peers that can read."""

    def wait(self, seconds: float) -> None: ...


def conversations(subject: str, version: str) -> Iterator[Conversation]:
    """Yield the conversations about a subject that a version of RabbitMQ takes part in."""
    text = (Path(__file__).parent / f"{subject}.txt").read_text()
    for block in text.split("\n== ")[1:]:
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        given = [re.fullmatch(r"([A-Z]+) = (.*)", line) for line in lines]
        values = [[(each[1], value) for value in each[2].split(" | ")] for each in given if each]
        for chosen in itertools.product(*values):
            replaced = [_replaced(line, chosen) for line, each in zip(lines, given, strict=True) if not each]
            found = _conversation(replaced, " ".join(value for _, value in chosen))
            if _numbers(version) >= found.oldest:
                yield found


def _replaced(line: str, chosen: tuple[tuple[str, str], ...]) -> str:
    for name, value in chosen:
        line = line.replace(name, value)
    return line


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _conversation(lines: list[str], chosen: str) -> Conversation:
    found = Conversation(lines[0], [], (0,))
    for line in lines[1:]:
        if line.startswith("from "):
            found = found._replace(oldest=_numbers(line[5:]))
        elif line.startswith("<> "):
            where, _, reason = line[3:].partition(": ")
            versions, _, values = where.partition(" if ")
            if values in ("", chosen):
                found.steps[-1].differs.update(dict.fromkeys(versions.split(", "), reason))
        else:
            found.steps.append(_step(line))
    return found


def _step(line: str) -> Step:
    peer, _, said = line.rpartition(" >> ")
    return Step(line, peer, *_parsed(said), {})


@cache
def _parsed(said: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return an operation, its arguments, and its named arguments."""
    call: Any = ast.parse(said, mode="eval").body
    named = {each.arg: _value(each.value) for each in call.keywords}
    return ast.unparse(call.func), [_value(each) for each in call.args], named


def _value(node: Any) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            named = {str(each.arg): _value(each.value) for each in node.keywords}
            arguments = [_value(each) for each in node.args]
            return composite(name, *arguments, **named) if name in COMPOSITES else _TYPES[name](*arguments, **named)
        case ast.Dict():
            return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
        case ast.List():
            return [_value(each) for each in node.elts]
        case ast.Tuple():
            return tuple(_value(each) for each in node.elts)
        case _:
            return ast.literal_eval(node)


def held(conversation: Conversation, place: Place) -> Iterator[Heard]:
    """Hold a conversation, and yield what was heard, in which nothing depends on the run."""
    peers: dict[str, Peer] = {}
    names: dict[str, str] = {}
    for number, step in enumerate(conversation.steps):
        if step.peer:
            if step.peer not in peers or peers[step.peer].is_closed:
                protocol = (
                    Peer10 if step.peer.endswith("10") else StreamPeer if step.peer.startswith("stream") else Peer091
                )
                peers[step.peer] = place.connect(step.peer, protocol)
            arguments = [_real(each, names) for each in step.arguments]
            named = {name: _real(each, names) for name, each in step.named.items()}
            peers[step.peer].say(step.operation, *arguments, **named)
        else:
            place.wait(*step.arguments)
        while readable := place.readable([peer for peer in peers.values() if not peer.is_closed]):
            for peer in readable:
                peer.hear()
        heard = [f"{name} << {line}" for name, peer in peers.items() for line in peer.heard()]
        yield Heard(conversation.title, number, step.text, [_normal(line, place.vhost, names) for line in heard])


def _real(value: Any, names: dict[str, str]) -> Any:
    """Replace what _normal() has written by the broker's generated name."""
    if isinstance(value, Described):
        return Described(value.descriptor, _real(value.value, names))
    if isinstance(value, list):
        return [_real(each, names) for each in value]
    if isinstance(value, str) and type(value) is str:
        for real, written in names.items():
            value = value.replace(written, real)
    return value


def _normal(line: str, vhost: str, names: dict[str, str]) -> str:
    """Replace what differs from run to run: the virtual host, generated names, times, and the node."""
    line = line.replace(vhost, "/")
    line = re.sub(r"rabbit@[\w.-]+", "NODE", line)
    line = re.sub(r"\\n +", "", line)  # RabbitMQ breaks the lines of long terms
    return re.sub(
        r"(amq\.[\w.]*?-?(?:gen|ctag|reply-to)[-.])[\w+/=.%-]{10,}",
        lambda found: names.setdefault(found[0], _name(unquote(found[0]), found[1], names)),
        line,
    )


def _name(real: str, prefix: str, names: dict[str, str]) -> str:
    """Return what to write for a generated name: the same as before if it was only encoded in another way."""
    known = {unquote(each): written for each, written in names.items()}
    return known.get(real, f"{prefix}{len(known) + 1}")
