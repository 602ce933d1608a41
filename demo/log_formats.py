"""Find a real log file on this machine, and make routing keys from fields of its lines."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from demo import OUTPUT
from mqtool.stage.terminal import CheckFailed

#: Log files to look for, in this order.
_USUAL = (
    "/var/log/dpkg.log",
    "/var/log/apt/history.log",
    "/var/log/pacman.log",
    "/var/log/syslog",
    "/var/log/system.log",
)
#: What mqtool inserts for a group that did not match.
UNKNOWN = "unknown"
#: The number of lines that decide the format.
_SAMPLE = 500
#: The hint of an error about the log file.
ANOTHER_FILE = "choose another log file with LOG=FILE"


@dataclass(frozen=True)
class LogFormat:
    """A format of log files, with the rule for making a routing key of two parts from each line.

    Attributes:
        name: what to call a log in this format in a sentence, such as "the log of dpkg".
        first, second: names of the pattern's groups that match the two parts. The first part must not contain dots, and
            should have few different values, because most receivers select lines by it. The second part may contain
            dots.
        pattern: a regular expression for --key-pattern.
    """

    name: str
    first: str
    second: str
    pattern: str

    @property
    def routing_key(self) -> str:
        """Return the routing key for `emit-log`, with placeholders for the groups of the pattern."""
        return f"{{{self.first}}}.{{{self.second}}}"

    def key(self, line: bytes) -> str:
        """Return the routing key that mqtool should make from a line, computed in plain Python."""
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
#: For any other log: its first two words that begin with a letter.
UNKNOWN_FORMAT = LogFormat(
    "a log in an unknown format",
    "word",
    "next",
    r"(?:^|[\s\[(<\"])(?P<word>[A-Za-z][\w-]{0,60})(?:\W+(?P<next>[A-Za-z][\w-]{0,60}))?",
)


def format_of(log: bytes) -> LogFormat:
    """Return the first format whose pattern matches at least half of the log's first 500 lines.

    If none does, return UNKNOWN_FORMAT.
    """
    sample = log.splitlines()[:_SAMPLE]
    for candidate in FORMATS:
        fits = sum(re.search(candidate.pattern, line.decode("utf-8", "replace")) is not None for line in sample)
        if fits * 2 >= len(sample):
            return candidate
    return UNKNOWN_FORMAT


def read(path: Path) -> bytes:
    """Return the contents of a log file.

    Raises:
        CheckFailed: the file cannot be read, or is empty.
    """
    try:
        log = path.read_bytes()
    except OSError as error:
        raise CheckFailed(f"cannot read the log file {path}: {error.strerror}", ANOTHER_FILE) from error
    if not log:
        raise CheckFailed(f"the log file {path} is empty", ANOTHER_FILE)
    return log


def find() -> Path | None:
    """Return a readable log file of this machine that is not empty; None if there is none."""
    for path in map(Path, _USUAL):
        if path.is_file() and os.access(path, os.R_OK) and path.stat().st_size:
            return path
    return None


def history_of_this_project() -> Path:
    """Write the Git history of this project to a file, and return its path.

    Raises:
        CheckFailed: Git is not installed, or the project is not in a Git repository.
    """
    path = OUTPUT / "git.log"
    root = Path(__file__).parent
    try:
        log = subprocess.run(["git", "-C", root, "log", "--format=%as %an: %s"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CheckFailed(
            "there is no readable log file on this machine, and the Git history of this project cannot be read",
            ANOTHER_FILE,
        ) from error
    path.write_bytes(log)
    return path
