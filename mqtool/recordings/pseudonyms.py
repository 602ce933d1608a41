"""Pseudonyms: replace words, numbers and dates, consistently, with others of the same kind and length.

The replacement is a permutation of all words of the same shape, keyed by a seed: two different words never become the
same, and no word stays the same. It is a Feistel network over the characters of a word, like the format-preserving
encryption of NIST SP 800-38G. Words of more than 24 characters are combined with a keystream instead; their collisions
are extremely unlikely.
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import lru_cache
from typing import NamedTuple

#: The longest word that is permuted, and the rounds of the Feistel network.
_SHORT, _ROUNDS = 24, 4
#: The number of replacements to cache, since most words occur more than once.
_REMEMBERED = 1 << 16
_INT64, _UINT64 = 1 << 63, 1 << 64
_NUMBERS = ("int64", "uint64", "large")
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_CLOCK = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,12})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
_DATE = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T ]{_CLOCK})?"
_WORD = r"(?:[0-9A-Za-z]|[^\x00-\x7f])+"
#: UUIDs, dates and words, each of which is replaced as a whole. Everything else is punctuation, and stays.
_PIECE = re.compile(rf"(?<![0-9A-Za-z])(?:{_UUID}|{_DATE})(?![0-9A-Za-z])|{_WORD}")
_DIGITS = re.compile("[0-9]+")
_WORDS = re.compile(_WORD)
_IS_UUID = re.compile(_UUID)
_IS_HEX = re.compile("(?=.*[0-9])(?=.*[a-fA-F])[0-9a-fA-F]{4,}")
_IS_DATE = re.compile(r"(.{10})(.?)([0-9:]*)\.?([0-9]*)(.*)")
#: The first day, and the number of days (a product), of the 202 years from which dates are replaced.
_FIRST_DAY, _DAYS = date(1900, 1, 1), (288, 256)
#: Ranges of letters. Another character is replaced within its block of 64, whose characters have equal UTF-8 lengths.
_SCRIPTS = (
    (0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xDE), (0xDF, 0xF6), (0xF8, 0xFF),
    (0x391, 0x3A1), (0x3B1, 0x3C9), (0x410, 0x42F), (0x430, 0x44F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xDC80, 0xDCFF),
)  # fmt: skip


class _Alphabet(NamedTuple):
    """A range of character codes. Each character is replaced with another from the same range."""

    first: int
    size: int


@lru_cache(4096)
def _alphabet(character: str) -> _Alphabet:
    code = ord(character)
    for first, last in _SCRIPTS:
        if first <= code <= last:
            return _Alphabet(first, last - first + 1)
    kind = unicodedata.category(character)
    if kind == "Nd":
        return _Alphabet(code - unicodedata.decimal(character), 10)
    return _Alphabet(code, 1) if kind[0] in "ZCP" else _Alphabet(code & ~63, 64)


_HEX = {character: _Alphabet(ord(letters[0]), 6) for letters in ("abcdef", "ABCDEF") for character in letters}


class Pseudonyms:
    """Replaces words, numbers, dates and bytes. Keep `seed` secret: with it, the originals can be found."""

    def __init__(self, seed: bytes) -> None:
        self._key = hashlib.blake2b(seed, digest_size=32, person=b"mqtool scrub").digest()
        self._keyed = hashlib.blake2b(key=self._key)
        self._piece: Callable[[str], str] = lru_cache(_REMEMBERED)(self._replaced)
        self._cycle: Callable[[int], dict[int, int]] = lru_cache(64)(self._made_cycle)

    def text(self, text: str) -> str:
        """Replace the words, dates and UUIDs in `text`. Spaces and punctuation stay."""
        return _PIECE.sub(lambda match: self._piece(match[0]), text)

    def number(self, number: str) -> str:
        """Replace the digits of a JSON number. Its sign and exponent stay."""
        mantissa, letter, exponent = re.split("([eE])", number) if "e" in number.lower() else (number, "", "")
        return _DIGITS.sub(lambda match: self._piece(match[0]), mantissa) + letter + exponent

    def data(self, data: bytes) -> bytes:
        """Replace bytes with the same number of other bytes. If they are not UTF-8, neither is the replacement."""
        found, attempt = data, 0
        while data and (found == data or (_is_text(found) and not _is_text(data))):
            found = hashlib.shake_256(self._key + bytes([attempt & 255]) + data).digest(len(data))
            attempt += 1
        return found

    def _replaced(self, piece: str) -> str:
        if "-" in piece and piece.isascii():
            return self._uuid(piece) if _IS_UUID.fullmatch(piece) else self._date(piece)
        alphabets = [_alphabet(each) for each in piece]
        kind = _kind(piece)
        if kind == "hex":
            alphabets = [_HEX.get(each) or alphabet for each, alphabet in zip(piece, alphabets, strict=True)]
        elif kind == "zero":
            alphabets[0] = _Alphabet(ord("0"), 1)
        elif kind in _NUMBERS:
            alphabets[0] = _Alphabet(ord("1"), 9)
        while True:  # walk the permutation's cycle to the next word of the same kind
            piece = self._word(piece, alphabets)
            if _kind(piece) == kind:
                return piece

    def _word(self, word: str, alphabets: Sequence[_Alphabet]) -> str:
        codes = [*map(ord, word)]
        positions = [at for at, alphabet in enumerate(alphabets) if alphabet.size > 1]
        values = [codes[at] - alphabets[at].first for at in positions]
        permuted = self._permuted(values, [alphabets[at].size for at in positions])
        for at, value in zip(positions, permuted, strict=True):
            codes[at] = alphabets[at].first + value
        return "".join(map(chr, codes))

    def _uuid(self, text: str) -> str:
        """Return another UUID with the same version and variant."""
        keyed = self._keyed.copy()
        keyed.update(b"uuid" + text.lower().encode())
        digits = keyed.hexdigest()
        found = f"{digits[:8]}-{digits[8:12]}-{text[14]}{digits[13:16]}-{text[19]}{digits[17:20]}-{digits[20:32]}"
        return found.upper() if text.isupper() else found.lower()

    def _date(self, text: str) -> str:
        """Return another date and time of day. If the date is not valid, or is out of range, replace its digits."""
        parts = _IS_DATE.fullmatch(text)
        assert parts is not None
        clock, limits = [int(part) for part in parts[3].split(":") if part], [24, 60, 60]
        try:
            day = (date.fromisoformat(parts[1]) - _FIRST_DAY).days
        except ValueError:
            day = -1
        if not 0 <= day < _DAYS[0] * _DAYS[1] or any(part >= limit for part, limit in zip(clock, limits, strict=False)):
            return _WORDS.sub(lambda match: self._piece(match[0]), text)
        values = [*divmod(day, _DAYS[1]), *clock, *map(int, parts[4])]
        high, low, *rest = self._permuted(values, [*_DAYS, *limits[: len(clock)], *[10] * len(parts[4])])
        day_text = (_FIRST_DAY + timedelta(high * _DAYS[1] + low)).isoformat()
        clock_text = ":".join(f"{part:02}" for part in rest[: len(clock)])
        fraction = "".join(map(str, rest[len(clock) :]))
        return f"{day_text}{parts[2]}{clock_text}{'.' * bool(fraction)}{fraction}{parts[5]}"

    def _permuted(self, values: list[int], sizes: list[int]) -> list[int]:
        """Return a replacement for each value; both are less than the value's entry in `sizes`."""
        if len(values) > _SHORT:
            return _added(values, self._stream(b"long", values), sizes, 1)
        if len(values) < 2:
            return [self._cycle(size)[value] for value, size in zip(values, sizes, strict=True)]
        # Undo the network, step to the next word, and apply the network: no word is replaced by itself.
        found = self._mixed(values, sizes, -1)
        found[0] = (found[0] + 1) % sizes[0]
        return self._mixed(found, sizes, 1)

    def _mixed(self, values: list[int], sizes: list[int], sign: int) -> list[int]:
        half = len(values) // 2
        left, right = values[:half], values[half:]
        for number in range(_ROUNDS)[::sign]:
            if number % 2:
                left = _added(left, self._stream(bytes([number]), right), sizes[:half], sign)
            else:
                right = _added(right, self._stream(bytes([number]), left), sizes[half:], sign)
        return left + right

    def _stream(self, purpose: bytes, values: list[int]) -> "array[int]":
        """Return a keystream of at least 16 numbers, and at least one for each value."""
        data = purpose + array("I", values).tobytes()
        if len(values) > _SHORT:
            return array("I", hashlib.shake_256(self._key + data).digest(4 * len(values)))
        keyed = self._keyed.copy()
        keyed.update(data)
        return array("I", keyed.digest())

    def _made_cycle(self, size: int) -> dict[int, int]:
        """Return the replacement of each single character: the next one in a random cycle through all of them."""
        around = sorted(range(size), key=lambda each: bytes(self._stream(b"one", [size, each])))
        return dict(zip(around, [*around[1:], around[0]], strict=True))


def _added(values: list[int], stream: Sequence[int], sizes: Sequence[int], sign: int) -> list[int]:
    return [(value + sign * more) % size for value, more, size in zip(values, stream, sizes, strict=False)]


def _kind(word: str) -> str:
    """Return a word's kind: a number (by its range), hexadecimal, or other. Its replacement is of the same kind."""
    if word.isascii() and word.isdigit():
        if len(word) == 1:
            return "digit"
        if word[0] == "0":
            return "zero"
        if len(word) < 19 or int(word[:20]) <= _INT64:
            return "int64"
        return "uint64" if int(word[:21]) < _UINT64 else "large"
    return "hex" if _IS_HEX.fullmatch(word) else "word"


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
