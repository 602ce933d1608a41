"""SQL filter expressions, which choose messages of a stream, as in RabbitMQ 4.2.

https://docs.oasis-open.org/amqp/filtex/v1.0/csd01/filtex-v1.0-csd01.html#_Toc67929276. In an expression, strings
and bytes are the same type, and None stands for an unknown value.
"""

import operator
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from mqtool.broker.embedded.amqp10.filtered_message import SCANNED, FilteredMessage, comparable
from mqtool.broker.embedded.amqp10.like_pattern import LikePattern
from mqtool.codecs.amqp10_message import BareProperties

_LONGEST, _MOST_TOKENS = 4096, 200

#: A compiled expression.
Expression: TypeAlias = Callable[[FilteredMessage], Any]

_TOKEN = re.compile(
    r"""[ \t\f\n\r]*(?:
        (?P<float>[0-9]+\.[0-9]+(?:E[+-]?[0-9]+)?)
        | (?P<binary>0x(?:[0-9A-F]{2})+)
        | (?P<integer>[0-9]+)
        | (?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
        | (?P<field>[a-zA-Z][a-zA-Z_-]*\.[a-zA-Z][a-zA-Z0-9_]*)
        | (?P<quoted>\[(?:[^\[\]]|\[\[|\]\])*\])
        | (?P<word>[a-zA-Z][a-zA-Z0-9_]*)
        | (?P<symbol><>|!=|>=|<=|[=<>+\-*/%(),])
        | (?P<end>$)
    )""",
    re.VERBOSE,
)
_WORDS = {"AND", "OR", "NOT", "LIKE", "IN", "IS", "NULL", "ESCAPE", "TRUE", "FALSE", "UTC"}
_RESERVED = {word.lower() for word in _WORDS} | {
    "exists", "nan", "inf", "lower", "upper", "left", "right", "substring", "date",
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def equal(left: Any, right: Any) -> bool:
    """Compare two values. Numbers of different types can be equal; a boolean never equals a number."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def field_of(name: str) -> Expression:
    """Return the expression for a field of the properties section, such as `subject`."""
    return lambda message: message.property(name)


def _application(name: str) -> Expression:
    return lambda message: message.application_property(name)


def compile_sql(text: str) -> Callable[[FilteredMessage], bool]:
    """Compile an expression. Raises ValueError if it is not valid, or too long.

    The compiled expression raises TooMuchWork if it takes too long for a message.
    """
    try:
        expression = _Parser(_tokens(text)).parse()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return lambda message: expression(message) is True


def _tokens(text: str) -> list[tuple[str, Any]]:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    tokens: list[tuple[str, Any]] = []
    position = 0
    while True:
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise ValueError("illegal character")
        tokens.append(_token(found.lastgroup, found[found.lastgroup]))
        position = found.end()
        if found.lastgroup == "end":
            return tokens
        if len(tokens) > _MOST_TOKENS:
            raise ValueError("too many tokens")


def _token(kind: str, raw: str) -> tuple[str, Any]:
    match kind:
        case "integer":
            return "literal", int(raw)
        case "float":
            return "literal", float(raw)
        case "binary":
            return "literal", bytes.fromhex(raw[2:])
        case "string":
            return "string", raw[1:-1].replace(raw[0] * 2, raw[0])
        case "field":
            return "identifier", _field(raw)
        case "quoted":
            if _CONTROL.search(raw):
                raise ValueError("control character in an identifier")
            return "identifier", _application(raw[1:-1].replace("[[", "[").replace("]]", "]"))
        case "word":
            return _word(raw)
        case "symbol":
            return "<>" if raw == "!=" else raw, None
    return kind, None


def _word(raw: str) -> tuple[str, Any]:
    if raw in ("TRUE", "FALSE"):
        return "literal", raw == "TRUE"
    if raw in _WORDS:
        return raw, None
    if raw.lower() in _RESERVED:
        raise ValueError("reserved word")
    return "identifier", _application(raw)


def _field(raw: str) -> Expression:
    section, _, name = raw.partition(".")
    if section in ("header", "h") and name == "priority":
        return FilteredMessage.priority
    if section in ("properties", "p") and name in BareProperties._fields:
        return field_of(name)
    if section in ("application_properties", "a"):
        return _application(name)
    raise ValueError("unsupported field")


class _Parser:
    """A recursive descent parser. Each method parses one kind of expression, and returns it compiled."""

    def __init__(self, tokens: list[tuple[str, Any]]) -> None:
        self._tokens = tokens
        self._at = 0

    def parse(self) -> Expression:
        expression = self._or()
        self._expect("end")
        return expression

    def _take(self, *kinds: str) -> tuple[str, Any] | None:
        """Consume and return the next token if it is one of these kinds; otherwise return None."""
        token = self._tokens[self._at]
        if token[0] not in kinds:
            return None
        self._at += 1
        return token

    def _expect(self, *kinds: str) -> Any:
        token = self._take(*kinds)
        if token is None:
            raise ValueError(f"{kinds[0]} expected")
        return token[1]

    def _or(self) -> Expression:
        left = self._and()
        while self._take("OR"):
            left = _either(left, self._and(), decided_by=True)
        return left

    def _and(self) -> Expression:
        left = self._not()
        while self._take("AND"):
            left = _either(left, self._not(), decided_by=False)
        return left

    def _not(self) -> Expression:
        return _negated(self._not()) if self._take("NOT") else self._comparison()

    def _comparison(self) -> Expression:
        start = self._at
        left = self._sum()
        if (token := self._take("=", "<>", *_COMPARISONS)) is not None:
            return _compared(token[0], left, self._sum())
        if self._take("IS"):
            if self._tokens[start][0] != "identifier" or self._at != start + 2:
                raise ValueError("only fields can be NULL")
            negative = self._take("NOT")
            self._expect("NULL")
            return (lambda of: left(of) is not None) if negative else (lambda of: left(of) is None)
        negative = self._take("NOT")
        if self._take("LIKE"):
            found = _like(left, self._expect("string"), self._expect("string") if self._take("ESCAPE") else None)
        elif self._take("IN"):
            found = _among(left, self._list())
        elif negative:
            raise ValueError("LIKE or IN expected")
        else:
            return left
        return _negated(found) if negative else found

    def _list(self) -> list[Expression]:
        self._expect("(")
        items = [self._sum()]
        while self._take(","):
            items.append(self._sum())
        self._expect(")")
        return items

    def _sum(self) -> Expression:
        left = self._product()
        while (token := self._take("+", "-")) is not None:
            left = _calculated(token[0], left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._signed()
        while (token := self._take("*", "/", "%")) is not None:
            left = _calculated(token[0], left, self._signed())
        return left

    def _signed(self) -> Expression:
        sign = self._take("+", "-")
        value = self._primary()
        if sign is None:
            return value
        return _calculated("*", value, lambda _: 1 if sign[0] == "+" else -1)

    def _primary(self) -> Expression:
        if self._take("("):
            expression = self._or()
            self._expect(")")
            return expression
        if self._take("UTC"):
            self._expect("(")
            self._expect(")")
            return lambda _: time.time_ns() // 1_000_000
        if (name := self._take("identifier")) is not None:
            compiled: Expression = name[1]
            return compiled
        value = comparable(self._expect("literal", "string"))
        return lambda _: value


def _either(left: Expression, right: Expression, *, decided_by: bool) -> Expression:
    """Combine two expressions with OR (`decided_by=True`) or AND (`decided_by=False`). Their values may be unknown."""

    def value(of: FilteredMessage) -> Any:
        first = left(of)
        if first is decided_by:
            return decided_by
        second = right(of)
        if second is decided_by:
            return decided_by
        return (not decided_by) if first is second is (not decided_by) else None

    return value


def _negated(expression: Expression) -> Expression:
    def value(of: FilteredMessage) -> bool | None:
        found = expression(of)
        return not found if isinstance(found, bool) else None

    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compared(sign: str, left: Expression, right: Expression) -> Expression:
    def value(of: FilteredMessage) -> Any:
        first, second = left(of), right(of)
        if first is None or second is None:
            return None
        if sign in ("=", "<>"):
            return equal(first, second) is (sign == "=")
        alike = (_is_number(first) and _is_number(second)) or (isinstance(first, bytes) and isinstance(second, bytes))
        return alike and _COMPARISONS[sign](first, second)

    return value


def _remainder(left: Any, right: Any) -> int:
    """Return the remainder, which has the sign of `left`, as in Erlang. Raises TypeError for floats."""
    if not (isinstance(left, int) and isinstance(right, int)):
        raise TypeError
    rest = abs(left) % abs(right)
    return rest if left >= 0 else -rest


_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": _remainder,
}


def _calculated(sign: str, left: Expression, right: Expression) -> Expression:
    def value(of: FilteredMessage) -> Any:
        first, second = left(of), right(of)
        if not (_is_number(first) and _is_number(second)):
            return None
        try:
            return _ARITHMETIC[sign](first, second)
        except (ArithmeticError, TypeError):
            return None

    return value


def _among(left: Expression, items: list[Expression]) -> Expression:
    def value(of: FilteredMessage) -> bool | None:
        found = left(of)
        return None if found is None else any(equal(item(of), found) for item in items)

    return value


def _like(left: Expression, pattern: str, escape: str | None) -> Expression:
    """Compile a LIKE test. `%` matches any characters and `_` exactly one, except after the escape character."""
    if (escape is not None and len(escape) != 1) or _CONTROL.search(pattern):
        raise ValueError("not a pattern")
    wanted = LikePattern(pattern, escape)

    def value(of: FilteredMessage) -> Any:
        found = left(of)
        if not isinstance(found, bytes):
            return None
        of.work(len(found) // SCANNED)
        try:
            return wanted.matches(found.decode(), of.work)
        except UnicodeDecodeError:
            return None

    return value
