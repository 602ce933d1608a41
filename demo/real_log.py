"""python -m demo.real_log [FILE]: send a real log file, line by line, through a topic exchange.

Without FILE, a log of this machine is sent. Each receiver gets the lines whose routing keys match its binding keys, and
writes them to its own file. Then plain Python selects from the log, with regular expressions, the lines that each
receiver should have got, and compares them with the receiver's file.
"""

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from demo import OUTPUT, log_formats
from demo.log_formats import UNKNOWN
from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.display.play_lines import PlayLines, TypingPace
from mqtool.errors import MqtoolError
from mqtool.plays.performing import perform
from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import CheckFailed, Guard, Terminal

_NAME = "real_log"
#: How many of the most frequent first words get a receiver each.
_OWN = 3
#: The other words share a receiver if there are at most this many: nobody would type more binding keys.
_TYPED = 24
_OTHER_NAMES = ("all", "rest")
_LONGEST = 16


@dataclass(frozen=True)
class Receiver:
    """A receiver in the demonstration.

    Attributes:
        binding_keys: the binding keys of the receiver's queue.
        key_regex: a regular expression that matches the same routing keys.
        is_part: True if the receiver is one of those that divide the log: each line goes to at most one of them.
    """

    name: str
    binding_keys: tuple[str, ...]
    key_regex: str
    is_part: bool = False

    @property
    def file(self) -> Path:
        return OUTPUT / f"real-{self.name}.log"

    def command(self, exchange: str) -> str:
        """Return the command that receives from an exchange."""
        keys = shlex.join(self.binding_keys)
        return f"mqtool receive-log topic -e {exchange} {keys} --raw > {self.file}"

    def should_get(self, lines: Sequence[bytes], keys: Sequence[str]) -> list[bytes]:
        """Return the lines whose routing keys match key_regex."""
        fits = re.compile(self.key_regex)
        return [line for line, key in zip(lines, keys, strict=True) if fits.fullmatch(key)]


def play_of(log: Path | None, note: Callable[[str], None], table: Callable[[Table], None]) -> Play:
    """Return the demonstration as a Play, which runs its commands in several terminals.

    Args:
        log: the log file, if the user named one.
        note, table: functions that show text and tables beside the terminals.
    """
    return Play(
        "A real log",
        "A log file is sent line by line through a topic exchange. Two words of each line make its routing key.",
        lambda stage: _play(stage, log or _find(note), note, table),
        exchanges=(_NAME,),
    )


def _play(stage: Stage, path: Path, note: Callable[[str], None], table: Callable[[Table], None]) -> None:
    """Publish the log to the exchange, and compare what each receiver gets with what it should get.

    The receivers' binding keys are chosen from the routing keys of the log's lines.
    """
    log = log_formats.read(path)
    log_format = log_formats.format_of(log)
    receivers = _receivers([log_format.key(line) for line in _lines(log)])
    _spare_the_log(path, receivers)
    emitter, *terminals = stage.terminals("emitter", *(receiver.name for receiver in receivers))
    exchange = stage.name(_NAME)
    note(f"{path}, {log_format.name}: {len(_lines(log)):,} lines\n")

    for terminal, receiver in zip(terminals, receivers, strict=True):
        terminal.start(receiver.command(exchange))
    emitter.run(
        f"mqtool emit-log topic -e {exchange} '{log_format.routing_key}' -l "
        f"--key-pattern '{log_format.pattern}' < {shlex.quote(str(path))}"
    )
    sent = _sent(path, log, emitter)
    lines = _lines(sent)
    keys = [log_format.key(line) for line in lines]
    should_get = {receiver: receiver.should_get(lines, keys) for receiver in receivers}
    for terminal, receiver in zip(terminals, receivers, strict=True):
        stage.wait_for_lines(receiver.file, len(should_get[receiver]))
        terminal.interrupt()

    got = {receiver: _lines(receiver.file.read_bytes()) for receiver in receivers}
    table(_table(got, should_get))
    _compare(stage, sent, got, should_get)


def _find(note: Callable[[str], None]) -> Path:
    if (found := log_formats.find()) is not None:
        return found
    note("This machine has no readable log file, so the Git history of this project is sent instead.")
    return log_formats.history_of_this_project()


def _lines(log: bytes) -> list[bytes]:
    """Return the lines of a log, without their newlines."""
    lines = log.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _receivers(keys: Sequence[str]) -> list[Receiver]:
    """Return the receivers for a log whose lines have these routing keys, of two words each.

    The first receiver gets all lines. Each of the others gets the lines whose keys contain certain words. There is one
    receiver for each of the three most frequent first words, one for all other first words if there are at most 24 of
    them, and one for the most frequent second word. Second words that are "unknown" or contain dots do not count.
    """
    first = [word for word, _ in Counter(key.partition(".")[0] for key in keys).most_common()]
    own, rest = first[:_OWN], first[_OWN:]
    receivers = [Receiver("all", ("#",), ".*")]
    receivers += [_of_words(_file_name(word, number, own), [word]) for number, word in enumerate(own, 1)]
    if 0 < len(rest) <= _TYPED:
        receivers.append(_of_words("rest", rest))
    second = Counter(word for _, _, word in (key.partition(".") for key in keys) if "." not in word and word != UNKNOWN)
    for word, _ in second.most_common(1):
        name = _file_name(word, _OWN + 1, [*own, word])
        receivers.append(Receiver(name, (f"*.{word}",), rf"[^.]*\.{re.escape(word)}"))
    return receivers


def _file_name(word: str, number: int, words: Sequence[str]) -> str:
    """Return a name for the file of the receiver that selects lines by this word: the word in lower case or, if that
    is too long or not unique among the files, "part-" and `number`.
    """
    names = [other.casefold() for other in words]
    name = word.casefold()
    return name if names.count(name) == 1 and name not in _OTHER_NAMES and len(name) <= _LONGEST else f"part-{number}"


def _of_words(name: str, words: Sequence[str]) -> Receiver:
    regex = rf"({'|'.join(map(re.escape, words))})(\..*)?"
    return Receiver(name, tuple(f"{word}.#" for word in words), regex, is_part=True)


def _spare_the_log(path: Path, receivers: Sequence[Receiver]) -> None:
    if path.resolve() in [receiver.file.resolve() for receiver in receivers]:
        raise CheckFailed(f"a receiver would overwrite the log file {path}", log_formats.ANOTHER_FILE)


def _sent(path: Path, before: bytes, emitter: Terminal) -> bytes:
    """Return the part of the log that was sent. A log that is in use may have grown since the demonstration began.

    Raises:
        CheckFailed: not all lines were confirmed, or the log has changed other than by growing at its end.
    """
    last = emitter.lines[-1] if emitter.lines else ""
    confirmed = re.match(r"([\d,]+) confirmed in ", last)
    if confirmed is None:
        raise CheckFailed(f"emitter: the last line should contain the number of confirmed lines, but is {last!r}")
    count = int(confirmed[1].replace(",", ""))
    now = log_formats.read(path)
    at_least, at_most = len(_lines(before)), len(_lines(now))
    if not (now.startswith(before) and at_least <= count <= at_most):
        raise CheckFailed(
            f"{path} changed while it was being read, other than by growing at its end: it had {at_least:,} lines, "
            f"{count:,} were sent, and it now has {at_most:,}",
            log_formats.ANOTHER_FILE,
        )
    return now if count == at_most else b"".join(line + b"\n" for line in _lines(now)[:count])


def _compare(
    stage: Stage, sent: bytes, got: Mapping[Receiver, list[bytes]], should_get: Mapping[Receiver, list[bytes]]
) -> None:
    everything, *others = got
    total = len(_lines(sent))
    is_whole = sent.endswith(b"\n")
    stage.expect(
        f"{everything.file} is identical to the log{'' if is_whole else ', except for a newline added at the end'}",
        everything.file.read_bytes(),
        sent if is_whole else sent + b"\n",
    )
    stage.expect(
        "each receiver got the expected number of lines: those whose routing keys match its regular expression",
        [len(got[receiver]) for receiver in others],
        [len(should_get[receiver]) for receiver in others],
    )
    stage.expect(
        "each receiver got exactly the lines whose routing keys match its regular expression, in the log's order",
        [got[receiver] for receiver in others],
        [should_get[receiver] for receiver in others],
    )
    counts = [len(got[receiver]) for receiver in others if receiver.is_part]
    of_no_part = total - sum(len(should_get[receiver]) for receiver in others if receiver.is_part)
    summands = [f"{count:,}" for count in counts] + ([f"{of_no_part:,} others"] if of_no_part else [])
    stage.expect(
        f"the lines of the parts add up to the whole log: {' + '.join(summands)} = {total:,}",
        sum(counts) + of_no_part,
        total,
    )


def _table(got: Mapping[Receiver, list[bytes]], should_get: Mapping[Receiver, list[bytes]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("binding keys", overflow="fold")
    table.add_column("file", no_wrap=True)
    table.add_column("lines", justify="right", no_wrap=True)
    table.add_column("by regex", justify="right", no_wrap=True)
    for receiver, lines in got.items():
        numbers = (len(lines), len(should_get[receiver]))
        style = None if numbers[0] == numbers[1] else "red"
        keys = Text("  ".join(receiver.binding_keys))
        table.add_row(keys, str(receiver.file), *(f"{number:,}" for number in numbers), style=style)
    return table


def main() -> int:
    """Run the demonstration on the broker of MQTOOL_URL or AMQP_URL or, if neither is set, on a new embedded broker.
    Return the exit code.
    """
    stopping.install()
    stopping.let_children_be_interrupted()
    guard = Guard()
    log = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    lines = PlayLines(TypingPace(auto=True, watched=False))
    try:
        if log is not None:
            log_formats.read(log)  # fail early if it cannot be read
        OUTPUT.mkdir(exist_ok=True)
        play = play_of(log, lines.note, lines.table)
        with lines.watching(play.title, play.story):
            # The log's path is relative to the current directory.
            checks = perform(play, lines, guard, os.environ.get("MQTOOL_URL") or os.environ.get("AMQP_URL"), Path())
    except KeyboardInterrupt:
        output.notice("interrupted; all programs of the demonstration have been stopped")
        return 128 + (stopping.requested() or 2)
    except MqtoolError as failure:
        output.error(str(failure), failure.hint)
        return 1
    lines.right(f"{checks} checks passed; the receivers' files are in {OUTPUT}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
