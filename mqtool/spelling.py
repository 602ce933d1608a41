"""Text for hints and tables: suggestions for misspelled names, command lines that are safe to paste, values as text."""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from operator import eq
from typing import Any

#: Names shorter than this differ in a letter without being misspelled.
_SHORTEST = 4


#: The options that named the broker on the command line; see name_broker().
_broker_options: list[str] = []
#: Commands that name their broker themselves, or do not use it, or need another user: an administrator.
_WITHOUT_BROKER = re.compile(r"broker (up|down|rm|env|serve)|context |permission |user |.* (-u|-C|--url|--context)\b")


def name_broker(options: Mapping[str, str]) -> None:
    """Have pasteable() repeat the options with which the user named the broker, such as {"--url": "amqp://other"}.

    Without them, the printed command would use another broker.
    """
    _broker_options[:] = [quoted(f"{name}={value}") for name, value in options.items()]


def pasteable(own: str, *words: str, vhost: str | None = None) -> str:
    """Return a command line of mqtool that the user can paste: its arguments are quoted for the shell.

    If options on the command line named the broker, the returned command line contains them, too.

    Args:
        own: the command and its options, such as "queue delete". If it ends in "=", words[0] is that option's value.
        words: the arguments, such as names of queues. If any starts with a dash, "--" is put in front of them.
        vhost: the virtual host of the objects, if it may not be that of the URL.
    """
    broker = [] if _WITHOUT_BROKER.match(own) else [*_broker_options]
    if vhost is not None and not any(option.startswith("--vhost=") for option in broker):
        broker.append(quoted(f"--vhost={vhost}"))
    if own.endswith("="):
        first, *words_after = words
        return " ".join([f"mqtool {own}{quoted(first)}", *broker, *map(quoted, words_after)])
    dashes = ["--"] if any(word.startswith("-") for word in words) else []
    return " ".join(["mqtool", own, *broker, *dashes, *map(quoted, words)])


def starting_a_server(queue: str) -> str:
    """Return the command line that starts an RPC server on a queue, which is the tutorial's without --queue."""
    return pasteable("rpc-server") if queue == "rpc_queue" else pasteable("rpc-server --queue=", queue)


def quoted(word: str) -> str:
    """Quote a word for bash and zsh. Control characters and bytes that are not text become escapes in $'…'.

    The shell would cut the word at a NUL, and so name something else; it gets the characters \\x00 instead.
    """
    if word.isprintable():
        return shlex.quote(word)
    try:
        data = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = word.encode("utf-8", "replace")
    escaped = (chr(byte) if 31 < byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in data)
    text = "".join(r"\\x00" if each == r"\x00" else each for each in escaped)
    return f"$'{text}'"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to `word`; None if no name is similar."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1)), None)


def mistyped(word: str, names: Iterable[str]) -> str | None:
    """Return the name of which `word` is probably a misspelling; None if there is none.

    That is a name with one letter more, less or changed, with two neighbours swapped, or in other case or with other
    separators. Numbers and single letters tell names apart: jobs-1 is not a misspelling of jobs-2, nor log.a of log.b.
    """
    return next((name for name in names if name != word and _is_misspelling(word, name)), None)


def _is_misspelling(word: str, name: str) -> bool:
    if _bare(word) == _bare(name) != "":
        return True
    start = _shared(word, name)
    end = _shared(word[start:][::-1], name[start:][::-1])
    typed, meant = word[start : len(word) - end], name[start : len(name) - end]
    is_word = not (start and word[start - 1].isalnum()) and not (end and word[-end].isalnum())
    if max(len(word), len(name)) < _SHORTEST or is_word or not (typed + meant).isalpha():
        return False
    return max(len(typed), len(meant)) == 1 or (len(typed) == 2 and typed == meant[::-1])


def _shared(one: str, other: str) -> int:
    """Return the number of characters that two texts have in common at their start."""
    return [*map(eq, one, other), False].index(False)


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def did_you_mean(word: str, names: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return the hint "did you mean …?" with the nearest name; `otherwise` if no name is similar."""
    meant = nearest(word, names)
    return otherwise if meant is None else f"did you mean {meant!r}?"


def as_text(value: Any) -> str:
    """Format a value for output in a table or to a pipe."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, dict | list):
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True) if value else ""
    return str(value)


def in_time(count: int, seconds: float) -> str:
    """Return a duration and a rate: "2.0 s (1,500/s)". A rate below 10/s has a decimal.

    The rate is left out if it is below 0.1/s, or if the time is too short to measure it.
    """
    if seconds < 0.1:
        return "less than 0.1 s"
    rate = count / seconds
    return f"{seconds:.1f} s" + (f" ({rate:,.{int(rate < 10)}f}/s)" if rate >= 0.1 else "")


def counted(number: int, noun: str = "message") -> str:
    """Format a number with its noun: "1 message", "2,000 messages"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
