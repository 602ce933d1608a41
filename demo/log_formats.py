"""Real log files: which there are on a machine, and which of their fields make a routing key."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from demo import OUTPUT
from mqtool.stage.waiting import CheckFailed

#: In the order in which we look for them.
_USUAL = (
    "/var/log/dpkg.log",
    "/var/log/apt/history.log",
    "/var/log/pacman.log",
    "/var/log/syslog",
    "/var/log/system.log",
)
#: What mqtool puts in the place of a group that did not match.
UNKNOWN = "unknown"
#: Lines to tell a format by.
_SAMPLE = 500


@dataclass(frozen=True)
class LogFormat:
    """How to make a routing key of two words from a line.

    Attributes:
        name: what to call such a log.
        first, second: the groups of the pattern that give the words. The first has no dots and not too many values:
            receivers choose by it.
        pattern: a regular expression, as --key-pattern takes it.
    """

    name: str
    first: str
    second: str
    pattern: str

    @property
    def routing_key(self) -> str:
        """With places for the groups."""
        return f"{{{self.first}}}.{{{self.second}}}"

    def key(self, line: bytes) -> str:
        """What mqtool should make of a line, said again in plain Python."""
        match = re.search(self.pattern, line.decode("utf-8", "replace"))
        words = [match[self.first], match[self.second]] if match else [None, None]
        return ".".join(word or UNKNOWN for word in words)


FORMATS = (
    LogFormat("the log of dpkg", "action", "what", r"^[\d-]{10} [\d:]{8} (?P<action>[a-z]+) (?P<what>[^\s:]{1,60})"),
    LogFormat("the history of apt", "field", "word", r"^(?P<field>[A-Z][A-Za-z-]+): (?P<word>[\w+-]{1,60})"),
    LogFormat(
        "a system log",
        "program",
        "host",
        r"^(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\S+T\S+) (?P<host>\S{1,60}) (?P<program>\w[\w-]{0,60})\S*:",
    ),
    LogFormat(
        "the history of mqtool",
        "verb",
        "next",
        r"^[\d-]{10} [^:]+: (?P<verb>\w[\w-]{0,60})(?: (?P<next>\w[\w-]{0,60}))?",
    ),
)
#: For a log that we do not know: the first two of its words that begin with a letter.
UNKNOWN_FORMAT = LogFormat(
    "a log of a kind that we do not know",
    "word",
    "next",
    r"(?:^|[\s\[(<\"])(?P<word>[A-Za-z][\w-]{0,60})(?:\W+(?P<next>[A-Za-z][\w-]{0,60}))?",
)


def format_of(log: bytes) -> LogFormat:
    """The first format that fits at least half of the lines."""
    sample = log.splitlines()[:_SAMPLE]
    for candidate in FORMATS:
        fits = sum(re.search(candidate.pattern, line.decode("utf-8", "replace")) is not None for line in sample)
        if fits * 2 >= len(sample):
            return candidate
    return UNKNOWN_FORMAT


def read(path: Path) -> bytes:
    """The bytes of a log file.

    Raises:
        CheckFailed: it cannot be read, or there is nothing in it.
    """
    try:
        log = path.read_bytes()
    except OSError as error:
        raise CheckFailed(f"cannot read the log file {path}: {error.strerror}\n  LOG= names another one") from error
    if not log:
        raise CheckFailed(f"the log file {path} is empty\n  LOG= names another one")
    return log


def find() -> Path | None:
    """A log of this machine that we may read, if there is one."""
    for path in map(Path, _USUAL):
        if path.is_file() and os.access(path, os.R_OK) and path.stat().st_size:
            return path
    return None


def history_of_this_project() -> Path:
    """The project's own history, written to a file.

    Raises:
        CheckFailed: it has none.
    """
    path = OUTPUT / "git.log"
    root = Path(__file__).parent
    try:
        log = subprocess.run(["git", "-C", root, "log", "--format=%as %an: %s"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CheckFailed(
            "there is no log file on this machine, and no history of this project\n  LOG= names one"
        ) from error
    path.write_bytes(log)
    return path
