"""The parser of conditions on messages: `routing_key~'^kern' and headers.x-retry>=3`. See `mqtool help where`.

A condition consists of tests, FIELD or FIELD OPERATOR VALUE, joined with not, and, or, and parentheses. A field is a
name or a path of names: body.user.id, headers.'with.dots'.

Matching never raises an error: a field that is missing, or cannot be compared, does not match.

Existing languages do not suit a command line: JMESPath needs backticks around literals and has no regular expressions,
and no implementation of jq's language starts fast enough.
"""

import json
import operator
import re
from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

from mqtool import ndjson
from mqtool.duration import parse_duration
from mqtool.errors import BadExpression
from mqtool.message import PROPERTIES, Delivery, Message
from mqtool.spelling import did_you_mean

Record = Mapping[str, Any]

#: The names that a field may start with: the keys of a message's NDJSON, its properties, and its size in bytes.
FIELDS = ndjson.OF_A_DELIVERY | {"size", *PROPERTIES}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_EQUALITY = (operator.eq, operator.ne)
_OPERATOR = re.compile(r"!=|!~|==|<=|>=|[=~<>]")
_NAME = re.compile(r"[^\s.()=!~<>'\"]+")
#: The maximum depth of nested parentheses and nots.
_DEEPEST = 40
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,40})(?:\.\d{1,40})?", re.ASCII)
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)(?:([kKMGT])(i?))?B", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII | re.DOTALL)

#: Hints for what RE2 says about an expression that is incomplete, or contains a character that is meant as text.
_INCOMPLETE = {
    "missing )": r"close the parenthesis, or write \( to search for one",
    "missing ]": r"close the bracket, or write \[ to search for one",
    "unexpected )": r"open one before it, or write \) to search for one",
    "no argument": r"it repeats nothing; put \ before it to search for it",
}


class Literal(NamedTuple):
    """A value in a condition.

    Attributes:
        number: a number's value, a size in bytes, a duration in seconds, a time in seconds since 1970; None for text.
        is_text: True if the value was quoted, so it is compared with text only.
    """

    text: str
    number: float | None = None
    is_time: bool = False
    is_text: bool = False


def bare(text: str) -> Literal:
    """Parse an unquoted value: a number, a size, a time, a duration, or otherwise text."""
    if _NUMBER.fullmatch(text):
        return Literal(text, _parsed(text))
    if size := _SIZE.fullmatch(text):
        base = 1024 if size[3] else 1000
        return Literal(text, float(size[1]) * base ** " KMGT".index((size[2] or " ").upper()))
    if _TIME.fullmatch(text):
        return Literal(text, _seconds(text), is_time=True)
    try:
        return Literal(text, parse_duration(text))
    except ValueError:
        return Literal(text)


def _parsed(text: str) -> float:
    return float(text) if "." in text else int(text)


def _seconds(text: str) -> float | None:
    """Parse a time (local if it has no UTC offset); return seconds since 1970, or None if it is not a time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def number_of(value: Any, literal: Literal) -> float | None:
    """Convert a field's value to a number, to compare it with a numeric literal; None if that is not possible."""
    if isinstance(value, str):
        if literal.is_time:
            return _seconds(value)
        return _parsed(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    return value if isinstance(value, int | float) else None


def text_of(value: Any) -> str:
    """Format a field's value as in mqtool's NDJSON, but without quotes around strings."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    try:
        return ndjson.as_json(value)
    except (TypeError, ValueError, RecursionError):
        return ""


#: Marks a field that the record does not have.
_MISSING = object()


def _inside(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if isinstance(value, Mapping):
            value = value.get(name, _MISSING)
        elif isinstance(value, list) and name.isdecimal() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        else:
            return _MISSING
    return value


class _Subject:
    """A record to which a condition is applied. Decodes and parses the body lazily, once."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def at(self, name: str, path: tuple[str, ...]) -> Any:
        if name == "body" and path:
            return _inside(self._json, path)
        if name == "body":
            return self._body.decode("utf-8", "replace")
        if name == "size" and name not in self._record:
            return len(self._body)
        if name in self._record and name != "properties":
            return _inside(self._record[name], path)
        first, *rest = path if name == "properties" else (name, *path)
        found = _inside(self._record.get("properties"), (first,))
        return _MISSING if found is None else _inside(found, tuple(rest))  # None: the property is not set

    @cached_property
    def _body(self) -> bytes:
        body = self._record.get("body", b"")
        if "body_base64" in self._record:
            body = ndjson.from_json({"$bytes": self._record["body_base64"]})
        return body if isinstance(body, bytes) else text_of(body).encode("utf-8", "surrogatepass")

    @cached_property
    def _json(self) -> Any:
        try:
            return json.loads(self._body)
        except (ValueError, RecursionError):
            return _MISSING


Test = Callable[[_Subject], bool]


class Where:
    """A parsed condition, its text, and the names with which its fields begin (`headers` for `headers.x`)."""

    def __init__(self, text: str, fields: Set[str], test: Test) -> None:
        self.text = text
        self.fields = fields
        self._test = test

    def matches(self, record: Record) -> bool:
        """True if a record matches. Its keys are those of an NDJSON message, or the `fields` passed to parse()."""
        return self._test(_Subject(record))


def of_delivery(delivery: Delivery) -> Record:
    """Convert a delivery to a record, with the current time as its timestamp."""
    return {
        "timestamp": datetime.now(UTC),
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "queue": delivery.queue,
        "redelivered": delivery.redelivered,
        "headers": delivery.headers,
        "properties": delivery.properties,
        "body": delivery.body,
    }


def of_message(message: Message) -> Record:
    """Convert a message to a record without a timestamp or a queue."""
    return {
        "exchange": message.exchange or "",
        "routing_key": message.routing_key or "",
        "headers": message.properties.get("headers") or {},
        "properties": {**message.properties, "message_id": message.message_id},
        "body": message.body,
    }


# Tests.


def _comparison(name: str, path: tuple[str, ...], compare: Callable[[Any, Any], bool], literal: Literal) -> Test:
    def test(subject: _Subject) -> bool:
        value = ndjson.from_json(subject.at(name, path))
        if value is _MISSING:
            return False
        if literal.number is not None and (number := number_of(value, literal)) is not None:
            return compare(number, literal.number)
        if compare in _EQUALITY:
            is_comparable = not literal.is_text or isinstance(value, str | bytes)
            return compare(is_comparable and text_of(value) == literal.text, True)
        return literal.number is None and isinstance(value, str | bytes) and compare(text_of(value), literal.text)

    return test


def _search(name: str, path: tuple[str, ...], is_found: Callable[[str], bool], wanted: object) -> Test:
    def test(subject: _Subject) -> bool:
        value = ndjson.from_json(subject.at(name, path))
        return value is not _MISSING and is_found(text_of(value)) is wanted

    return test


#: What Python and RE2 write differently: an escaped character, a character class, or a repetition without a minimum.
_ESCAPED = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_DIFFERENT = re.compile(rf"{_ESCAPED.pattern}|\[\^?\]?(?:\\.|[^]\\])*\]|\{{,(?=\d+\}})", re.DOTALL)
#: The classes of all letters, digits and spaces, in brackets. RE2's own classes contain only those of ASCII.
_IN_BRACKETS = {
    "w": r"\pL\pN_",
    "W": r"\pM\pS\pZ\pC\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}",  # and all connectors (Pc), which are rare, but _
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "s": r"\s\v\x1c-\x1f\x{85}\pZ",
}
_OUTSIDE = {
    "w": f"[{_IN_BRACKETS['w']}]",
    "W": f"[^{_IN_BRACKETS['w']}]",
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "s": f"[{_IN_BRACKETS['s']}]",
    "S": f"[^{_IN_BRACKETS['s']}]",
    "Z": r"\z",
}


def _pattern(text: str) -> Callable[[str], bool]:
    """Return a function that returns True if a regular expression matches part of a text.

    Python's engine can take hours for one body, which anybody may have sent. RE2 takes linear time.

    Raises:
        ValueError: RE2 does not support a part of the expression, which the error names.
    """
    import re2

    def as_re2(found: re.Match[str], classes: Mapping[str, str] = _OUTSIDE) -> str:
        if found[0] == "{,":
            return "{0,"
        if not found[1]:
            return _ESCAPED.sub(lambda each: as_re2(each, _IN_BRACKETS), found[0])
        return f"\\x{{{found[1][1:]}}}" if len(found[1]) > 1 else classes.get(found[1], found[0])

    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(_DIFFERENT.sub(as_re2, text).encode(errors="surrogatepass"), options)
    except re2.error as error:
        raise ValueError(error.args[0].decode("utf-8", "replace")) from error

    def is_found(subject: str) -> bool:
        encoded = subject.encode(errors="replace")
        if pattern.search(encoded):
            return True
        return "$" in text and encoded.endswith(b"\n") and pattern.search(encoded[:-1]) is not None

    return is_found


def _presence(name: str, path: tuple[str, ...]) -> Test:
    absent = (_MISSING, None, False)
    return lambda subject: not any(subject.at(name, path) is each for each in absent)


# The grammar.


def parse(text: str, fields: Set[str] | None = FIELDS) -> Where:
    """Parse a condition.

    Args:
        fields: the field names that a condition may start with (`headers` in `headers.x`); None for any.

    Raises:
        BadExpression: the condition is not valid; the error contains the column.
    """
    parser = _Parser(text, fields)
    test = parser.either(_DEEPEST)
    if not parser.is_at_end:
        raise parser.error("expected 'and' or 'or'", hint="put a value with spaces in quotes")
    return Where(text, parser.used, test)


class _Parser:
    """A recursive-descent parser of conditions. `used` collects the first name of each field (headers of headers.x)."""

    def __init__(self, text: str, fields: Set[str] | None) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self.used: set[str] = set()

    @property
    def is_at_end(self) -> bool:
        self._skip()
        return self._at == len(self._text)

    def error(self, what: str, at: int | None = None, hint: str | None = None) -> BadExpression:
        """Return an error at the position `at`, by default the current one."""
        column = (self._at if at is None else at) + 1
        return BadExpression(what, self._text, column, hint or "'mqtool help where' shows how to write it")

    def either(self, depth: int) -> Test:
        tests = [self._both(depth)]
        while self._word("or"):
            tests.append(self._both(depth))
        return tests[0] if len(tests) == 1 else lambda subject: any(test(subject) for test in tests)

    def _both(self, depth: int) -> Test:
        tests = [self._negated(depth)]
        while self._word("and"):
            tests.append(self._negated(depth))
        return tests[0] if len(tests) == 1 else lambda subject: all(test(subject) for test in tests)

    def _negated(self, depth: int) -> Test:
        if not depth:
            raise self.error("this is nested too deeply", hint=f"up to {_DEEPEST} levels")
        if self._word("not"):
            negated = self._negated(depth - 1)
            return lambda subject: not negated(subject)
        if not self._take("("):
            return self._test()
        opened, test = self._at - 1, self.either(depth - 1)
        if not self._take(")"):
            raise self.error("this parenthesis is not closed" if self.is_at_end else "expected 'and', 'or' or ')'",
                             opened if self.is_at_end else None)  # fmt: skip
        return test

    def _test(self) -> Test:
        name, *path = self._field()
        self.used.add(name)
        self._skip()
        sign = _OPERATOR.match(self._text, self._at)
        if sign is None:
            return _presence(name, tuple(path))
        self._at = sign.end()
        self._skip()
        start, literal = self._at, self._value()
        if not sign[0].endswith("~"):
            return _comparison(name, tuple(path), _OPERATORS[sign[0]], literal)
        try:
            return _search(name, tuple(path), _pattern(literal.text), sign[0] == "~")
        except ValueError as error:
            is_cut = self._text[start] not in "'\"" and self._text[self._at : self._at + 1].isspace()
            wrong = next((each for each in _INCOMPLETE if str(error).startswith(each)), None)
            hint = "its syntax is RE2's, without lookaround and backreferences"
            if wrong is not None:
                hint = "put a value with spaces in quotes" if is_cut else _INCOMPLETE[wrong]
            raise self.error(f"not a valid regular expression: {error}", start, hint) from error

    def _field(self) -> list[str]:
        self._skip()
        start, names = self._at, [self._name("expected a field")]
        while self._text.startswith(".", self._at):
            self._at += 1
            names.append(self._name("expected a name after the dot"))
        if self._fields is None or names[0] in self._fields - {"properties"}:
            return names
        known, before = self._fields, []
        if names[0] == "properties" in known:
            if len(names) == 1:
                raise self.error("expected a property", hint="such as properties.message_id")
            before, known, names = ["properties"], frozenset(PROPERTIES), names[1:]
        name = names[0].replace("-", "_")
        if name not in known:
            listed = f"one of {', '.join(sorted(known))}"
            raise self.error(f"unknown field {names[0]!r}", start, did_you_mean(name, known, listed))
        return [*before, name, *names[1:]]

    def _name(self, expected: str) -> str:
        if (quoted := self._quoted()) is not None:
            return quoted
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self.error(expected, hint="such as routing_key, headers.x-retry or body.user.id")
        self._at = name.end()
        return name[0]

    def _value(self) -> Literal:
        if (quoted := self._quoted()) is not None:
            return Literal(quoted, is_text=True)
        start, depth = self._at, 0
        for character in self._text[start:]:  # up to a space, or a parenthesis that was opened before the value
            depth += (character == "(") - (character == ")")
            if character.isspace() or depth < 0:
                break
            self._at += 1
        if self._at == start:
            raise self.error("expected a value", hint="a value may be empty in quotes: ''")
        if self._text[start] in "=~<>!":
            raise self.error("unknown operator", start, "operators: = != ~ !~ < <= > >=; or quote the value")
        return bare(self._text[start : self._at])

    def _quoted(self) -> str | None:
        quote = self._text[self._at : self._at + 1]
        if quote not in ("'", '"'):
            return None
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            raise self.error("this quote is not closed")
        quoted, self._at = self._text[self._at + 1 : end], end + 1
        return quoted

    def _word(self, word: str) -> bool:
        """Skip a keyword if it comes next; return True if it did."""
        self._skip()
        found = re.compile(rf"{word}(?=[\s()]|$)", re.IGNORECASE).match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found is not None

    def _take(self, character: str) -> bool:
        self._skip()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
