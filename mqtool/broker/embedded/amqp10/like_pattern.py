"""The patterns of LIKE in SQL filters, matched in one pass without backtracking."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

from mqtool.broker.embedded.amqp10.filtered_message import SCANNED

#: Called with the units of work done; raises an exception if that is too much.
Meter = Callable[[int], None]

# The work for a place at which a part may begin, and for each piece that is compared there, in units.
_PLACE = 32

_ANY, _ONE = object(), object()


class _Part(NamedTuple):
    """The characters between two `%` of a pattern.

    Attributes:
        width: the number of characters.
        pieces: the literal texts between the `_`, each with its position in the part.
        longest: the index of the longest piece.
    """

    width: int
    pieces: list[tuple[int, str]]
    longest: int

    def is_at(self, text: str, start: int, meter: Meter) -> bool:
        """Return True if the text has this part at `start`."""
        meter(_PLACE * len(self.pieces) + self.width // SCANNED)
        return all(text.startswith(piece, start + at) for at, piece in self.pieces)

    def find(self, text: str, start: int, end: int, meter: Meter) -> int:
        """Return the first position of this part in a slice of the text, -1 if it is not there."""
        if not self.pieces:
            return start if start + self.width <= end else -1
        at, piece = self.pieces[self.longest]
        last = end - (self.width - at - len(piece))
        while True:
            found = text.find(piece, start + at, last)
            meter(_PLACE + ((last if found < 0 else found) - start) // SCANNED)
            if found < 0:
                return -1
            if len(self.pieces) == 1 or self.is_at(text, found - at, meter):
                return found - at
            start = found - at + 1


class LikePattern:
    """A pattern in which `%` matches any characters and `_` exactly one, except after the escape character.

    Each part between two `%` is taken at the first place where it fits, which is right because `%` matches anything.

    Args:
        pattern: the pattern.
        escape: the escape character, if any.

    Raises:
        ValueError: nothing follows the escape character.
    """

    def __init__(self, pattern: str, escape: str | None = None) -> None:
        tokens = list(_tokens(pattern, escape))
        self._is_exact = _ANY not in tokens
        parts: list[list[object]] = [[]]
        for token in tokens:
            if token is _ANY:
                parts.append([])
            else:
                parts[-1].append(token)
        self._first, *rest = map(_part, parts)
        self._last = rest.pop() if rest else self._first
        self._middle = [each for each in rest if each.width]
        self._width = self._first.width + sum(each.width for each in self._middle) + self._last.width

    def matches(self, text: str, meter: Meter) -> bool:
        """Return True if the whole text matches. Reports the work to `meter`."""
        size, first, last = len(text), self._first, self._last
        if self._is_exact:
            return size == first.width and first.is_at(text, 0, meter)
        end = size - last.width
        if size < self._width or not first.is_at(text, 0, meter) or not last.is_at(text, end, meter):
            return False
        position = first.width
        for part in self._middle:
            position = part.find(text, position, end, meter)
            if position < 0:
                return False
            position += part.width
        return True


def _tokens(pattern: str, escape: str | None) -> Iterator[object]:
    """Yield _ANY, _ONE or a literal character for each element of a pattern."""
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            if (literal := next(characters, None)) is None:
                raise ValueError("nothing follows the escape character")
            yield literal
        else:
            yield {"%": _ANY, "_": _ONE}.get(character, character)


def _part(tokens: list[object]) -> _Part:
    pieces: list[tuple[int, str]] = []
    for is_literal, group in groupby(enumerate(tokens), lambda each: each[1] is not _ONE):
        if is_literal:
            members = list(group)
            pieces.append((members[0][0], "".join(str(each) for _, each in members)))
    longest = max(range(len(pieces)), key=lambda each: len(pieces[each][1]), default=0)
    return _Part(len(tokens), pieces, longest)
