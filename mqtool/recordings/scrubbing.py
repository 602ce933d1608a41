"""Scrub a recording: replace the values in a recording with pseudonyms, so that it can be shared and still be replayed.

A line is rewritten token by token, which keeps spaces, the notation of numbers and the order of keys.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache, partial
from json.encoder import encode_basestring
from typing import Any

from mqtool import ndjson, wire_types
from mqtool.errors import BadData, UsageError
from mqtool.message import PROPERTIES
from mqtool.recordings.pseudonyms import Pseudonyms
from mqtool.spelling import did_you_mean

_INTEGER, _STRING = re.compile("-?[0-9]+"), re.compile('".*"', re.DOTALL)
_SECONDS = re.compile("-?[0-9]+([.][0-9]{1,3})?")
_REASON = re.compile('"(?:delivery_limit|expired|maxlen|rejected)"')
_ENCODING = (
    "aes128gcm|ascii|base64|binary|br|brotli|bzip2|compress|deflate|gzip|identity|iso-8859-[0-9]{1,2}|lz4|lzma|snappy"
    "|us-ascii|utf-?(?:8|16|32)|windows-125[0-8]|x-gzip|xz|zip|zlib|zstd|[78]bit"
)
#: The part of a content type that is kept: a publisher can write anything into other parameters.
_MEDIA_TYPE = re.compile(
    "(?:application|audio|font|image|message|model|multipart|text|video)/[a-z][a-z0-9!#$&^_.+-]*(?=[ \t]*(?:;|$))"
    rf"""(?:[ \t]*;[ \t]*charset=(["']?)(?:{_ENCODING})\1(?=[ \t]*(?:;|$)))?""",
    re.IGNORECASE,
)
#: Values that are never replaced, because they control how and when a message is sent. Each place is the number of
#: brackets around a value, and its path. Only tokens that match the pattern are kept.
_ALWAYS = {
    **{(1, name): _STRING for name in ("timestamp", "delay", "at")},
    (1, "version"): _INTEGER,
    **{(2, f"properties.{name}"): _INTEGER for name in ("delivery_mode", "priority")},
    **{(2, f"properties.{name}"): _SECONDS for name in ("timestamp", "absolute_expiry_time")},
    (2, "properties.expiration"): re.compile('"[0-9]+"'),
    (2, "properties.content_encoding"): re.compile(f'"(?:{_ENCODING})(?:[,:] ?(?:{_ENCODING}))*"', re.IGNORECASE),
}
#: Values that are kept unless --field names them: names on the broker, and what the broker writes into headers. In
#: some versions of RabbitMQ, a publisher can write anything there, of any type. Nobody needs x-first-death-queue and
#: the like beside x-death.
_USUALLY = {
    **{(1, name): _STRING for name in ("exchange", "queue")},
    **{(2, f"headers.{name}"): _INTEGER for name in ("x-delay", "x-delivery-count", "x-stream-offset")},
    **{(4, f"headers.x-death.{name}"): _STRING for name in ("exchange", "queue")},
    (4, "headers.x-death.count"): _INTEGER,
    (4, "headers.x-death.reason"): _REASON,
    (5, "headers.x-death.time.$timestamp"): _INTEGER,
}
_TOP = ("exchange", "routing_key", "queue", "headers", "properties", "footer", "body", "broker")
_TOKEN = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[{}\[\]]|-?[0-9][0-9.eE+-]*')
#: Keys whose values are bytes, written as Base64.
_BYTES = (".$bytes", ".$encoded", ".$amqp10")
#: How the id of a message begins that is a UUID over AMQP 1.0.
_URN = "urn:uuid:"
#: The key that marks a table, but is not in it. Directly in `headers`, it is the name of a header.
_TABLES = ("headers.", "footer.")
_TABLE = re.compile(r"(?<!^headers)(?<!^footer)\.\$table(?=\.|$)")
_DECIMAL = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")

_INT32 = (1 << 31) - 1

_Treatment = Callable[[str], str] | None


def parse_fields(names: Collection[str]) -> frozenset[str]:
    """Parse field names, separated by commas, into paths within a line: `type` becomes `properties.type`."""
    return frozenset(_path(name.strip()) for each in names for name in each.split(",") if name.strip())


def _path(name: str) -> str:
    first, dot, rest = name.removeprefix("properties.").partition(".")
    if first == "headers":  # a property, but a line has it beside the others
        return _named(f"{first}{dot}{rest}")
    if first in _TOP and not name.startswith("properties."):
        return name
    known = first.replace("-", "_")
    if known not in PROPERTIES:
        listed = f"one of {', '.join((*_TOP, *PROPERTIES))}, or inside one: headers.type, body.user.id"
        raise UsageError(f"a message has no field {first!r}", did_you_mean(first, (*_TOP, *PROPERTIES), listed))
    return f"properties.{known}{dot}{rest}"


class Scrubber:
    """Replaces the values in a recording's lines.

    Attributes:
        unsearched: the number of lines in which text or bytes were replaced as a whole, because one of the fields in
            `only` may be in them, and cannot be found there.
        unseen: the fields in `only` in which no value has been found and replaced so far.

    Args:
        keep: fields, as returned by parse_fields(), that are kept, with everything inside them.
        only: replace only these fields; empty for all.
    """

    def __init__(self, pseudonyms: Pseudonyms, keep: Collection[str] = (), only: Collection[str] = ()) -> None:
        self._pseudonyms = pseudonyms
        self.unsearched = 0
        self.unseen = set(only)
        self._keep = frozenset(keep)
        self._only = frozenset(only)
        self._is_unsearched = False
        # What "types" says of the numbers of the current line, by their paths.
        self._types: dict[str, set[str]] = {}
        # Header names that "types" lists.
        self._names: Collection[str] = ()
        self._kept = {place: shape for place, shape in _USUALLY.items() if not _is_in(place[1], self._only)} | _ALWAYS
        self._treatment: Callable[[str], _Treatment] = lru_cache(4096)(self._chosen)
        self._is_replaced: Callable[[str], bool] = lru_cache(4096)(self._chosen_for_replacement)

    def line(self, line: bytes, place: str) -> bytes:
        """Scrub a line, given without its newline. `place` is the line's name in errors, such as "line 3"."""
        said = ndjson.to_object(line, place)
        try:
            text = line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise BadData(f"{place} is not UTF-8: {error}") from error
        if "\0" in text:  # json.loads() also reads UTF-16 and UTF-32, in which no key would be found
            raise BadData(f"{place} is not UTF-8")
        # Routing keys of the default exchange are names of queues.
        key = self._treatment("routing_key")
        if said.get("exchange") == "":
            name = None if (1, "queue") in self._kept else self._treatment("queue")
            key = partial(self._noting, "routing_key", name) if name is not None else None
        self._is_unsearched = False
        self._types = {}
        if isinstance(types := said.get("types"), dict):
            self._note_types(types, said)
        scrubbed = ndjson.escaped(self._walked(text, "", key)).encode()
        self.unsearched += self._is_unsearched
        return scrubbed

    def _note_types(self, types: dict[str, Any], said: dict[str, Any]) -> None:
        headers = said.get("headers")
        self._names = headers.keys() if isinstance(headers, dict) else ()
        for name in ("headers", "footer"):
            for path, kind in _types_by_path(types.get(name), said.get(name), name):
                self._types.setdefault(path, set()).add(kind)

    def _chosen_for_replacement(self, path: str) -> bool:
        path = _named(path)
        return not _is_in(path, self._keep) and (not self._only or _is_in(path, self._only))

    def _chosen(self, path: str) -> _Treatment:
        """Return the function that replaces a string at this path; None keeps the string."""
        treatment = self._body if path == "body" else self._usual_treatment(path)
        if self._is_replaced(path):
            return partial(self._noting, path, treatment) if self._only else treatment
        if not self._surrounds_field(_named(_header_of_bytes(path) or path)):
            return None
        return treatment if path == "body" else partial(self._unsearchable, treatment)

    def _noting(self, path: str, treatment: Callable[[str], str], text: str) -> str:
        """Replace a string. If that changes it, the fields that it is in are no longer unseen."""
        if (found := treatment(text)) != text:
            self._note(path)
        return found

    def _note(self, path: str) -> None:
        if self.unseen:
            name = _named(path)
            self.unseen = {field for field in self.unseen if not _is_in(name, {field})}

    def _surrounds_field(self, place: str) -> bool:
        """True if a field to replace would be inside the text or bytes at this place."""
        return any(field.startswith(f"{place}.") and not _is_in(field, self._keep) for field in self._only)

    def _usual_treatment(self, path: str) -> Callable[[str], str]:
        """Return the function that replaces a string at this path, which is not the body's."""
        if path == "properties.content_type":
            return self._content_type
        if path in ("properties.message_id", "properties.correlation_id"):
            return self._id
        if path == "body_base64":
            return self._base64
        if _header_of_bytes(path) is not None:
            return self._base64_or_text
        # A body, a table or a header's name can also contain these keys, with any text as their value.
        if path.endswith(".$double"):
            return self._double
        return self._decimal if path.endswith(".$decimal") else self._pseudonyms.text

    def _id(self, text: str) -> str:
        start = _URN if text.startswith(_URN) else ""
        return start + self._pseudonyms.text(text.removeprefix(start))

    def _number(self, path: str, token: str) -> str:
        """Replace a number. If the old one fits the type that the line names, so does the new one."""
        found = self._pseudonyms.number(token)
        named = {"uint32"} if path == "properties.group_sequence" else self._types.get(_named(path), ())
        if not (kinds := [kind for kind in named if _fits(token, kind)]):
            return found
        while not all(_fits(found, kind) for kind in kinds):  # the replacements of a number are a circle
            found = self._pseudonyms.number(found)
        if found == token and len(token) > 1:  # no other number of its length on the circle fits
            found = self._pseudonyms.number(token[:-1])
        return found

    def _is_kept(self, depth: int, path: str, token: str) -> bool:
        if path.startswith("types."):
            named = self._names if path == "types.application_properties" else wire_types.NAMES
            return token[0] == '"' and _text(token) in named
        shape = self._kept.get((depth, path))
        return shape is not None and shape.fullmatch(token) is not None

    def _walked(self, text: str, root: str, key: _Treatment = None) -> str:
        """Replace the values in a JSON text, whose path in the line is `root`. `key` is applied to the routing key."""
        around: list[str] = []
        path = root
        treatment, is_replaced, number = self._treatment, self._is_replaced, self._number

        def replaced(match: re.Match[str]) -> str:
            nonlocal path
            token: str = match[0]
            first = token[0]
            if first == '"':
                if match[2] is not None:
                    name = _text(match[1])
                    path = f"{around[-1]}.{name}" if around[-1] else name
                    if (
                        name in ("$encoded", "$amqp10")
                        and _header_of_bytes(path) is not None
                        and treatment(path) is not None
                    ):
                        return token.replace(name, "$bytes")  # the replaced bytes are not a valid AMQP value
                    return token
                treat = key if path == "routing_key" else treatment(path)
                if treat is None or self._is_kept(len(around), path, token):
                    return token
                return encode_basestring(treat(_text(token)))
            if first in "{[":
                around.append(path)
            elif first in "}]":
                path = around.pop()
            elif is_replaced(path) and not self._is_kept(len(around), path, token):
                if (found := number(path, token)) != token:
                    self._note(path)
                return found
            return token

        return _TOKEN.sub(replaced, text)

    def _body(self, text: str) -> str:
        try:
            json.loads(text, parse_constant=_not_json)
        except (ValueError, RecursionError):
            treatment = self._pseudonyms.text
            return treatment(text) if self._is_replaced("body") else self._unsearchable(treatment, text)
        return self._walked(text, "body")

    def _unsearchable(self, treatment: Callable[[str], str], text: str) -> str:
        """Replace a whole text. A field to replace may be in it, and cannot be found there, so it stays unseen."""
        if (found := treatment(text)) != text:
            self._is_unsearched = True
        return found

    def _content_type(self, text: str) -> str:
        match = _MEDIA_TYPE.match(text)
        end = match.end() if match else 0
        return text[:end] + self._pseudonyms.text(text[end:])

    def _double(self, text: str) -> str:
        return text if text in ndjson.NOT_FINITE.values() else self._pseudonyms.text(text)

    def _decimal(self, text: str) -> str:
        """Replace the digits of a decimal. If the old ones fit into AMQP's 31 bits, so do the new ones."""
        if not _DECIMAL.fullmatch(text):
            return self._pseudonyms.text(text)
        found = self._pseudonyms.number(text)
        while _digits(found) > _INT32 >= _digits(text):
            found = self._pseudonyms.number(found)
        return found

    def _base64(self, text: str) -> str:
        try:
            return base64.b64encode(self._pseudonyms.data(base64.b64decode(text, validate=True))).decode()
        except (binascii.Error, ValueError) as error:
            raise BadData(f"{text[:40]!r} is not Base64: {error}") from error

    def _base64_or_text(self, text: str) -> str:
        """Replace bytes, or the text that a table with other keys has under the same key."""
        try:
            return self._base64(text)
        except BadData:
            return self._pseudonyms.text(text)


def _is_in(path: str, fields: Collection[str]) -> bool:
    """True if a path is one of the fields, or inside one of them."""
    return path in fields or any(path.startswith(f"{field}.") for field in fields)


def _named(path: str) -> str:
    """Return the name that --keep and --field have for a path within a line."""
    if path == "body_base64":
        return "body"
    return _TABLE.sub("", path) if path.startswith(_TABLES) else path


def _header_of_bytes(path: str) -> str | None:
    """Return the path of the header, or of the value inside one, whose bytes may be at this path; None for other paths.

    A table can contain the same keys. The path shows this only if the table is marked with $table.
    """
    header = next((path.removesuffix(key) for key in _BYTES if path.endswith(key)), "")
    return header if header.startswith(_TABLES) and not header.endswith(".$table") else None


def _types_by_path(types: Any, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the paths of values, and what a line's "types" says of them. The items of a list have the list's path."""
    if isinstance(types, list) and len(types) == 2:
        types = types[1]
    if isinstance(types, str):
        yield path, types
    if not isinstance(types, dict):
        return
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _types_by_path(types.get(str(index)), each, path)
    elif isinstance(value, dict):
        inside = value["$table"] if value.keys() == {"$table"} else value
        for key, each in inside.items() if isinstance(inside, dict) else ():
            yield from _types_by_path(types.get(key), each, f"{path}.{key}")


def _fits(token: str, kind: str) -> bool:
    try:
        wire_types.of_type(kind, json.loads(token))
    except (LookupError, ValueError, OverflowError, struct.error):
        return False
    return True


def _text(token: str) -> str:
    return json.loads(token) if "\\" in token else token[1:-1]


def _digits(number: str) -> int:
    return int(re.sub("[^0-9]", "", number.lower().partition("e")[0])[:4000] or 0)


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
