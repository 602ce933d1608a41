"""Contexts: brokers that the user has named, in $XDG_CONFIG_HOME/mqtool/config.toml:

    use = "staging"

    [contexts.prod]
    url = "amqps://ann@mq.example.com/shop"
    password-command = "pass show mq/prod"
    protected = true

The file is only read if neither an option nor the environment gives a broker's URL. `context add`, `use` and `rm`
change only the lines concerned and keep comments.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mqtool.errors import MqtoolError, UsageError
from mqtool.spelling import did_you_mean, pasteable

if TYPE_CHECKING:
    import typer

VARIABLE = "MQTOOL_CONTEXT"
URL_VARIABLES = ("MQTOOL_URL", "AMQP_URL")
MANAGEMENT_VARIABLE = "MQTOOL_MANAGEMENT_URL"
STREAM_PORT_VARIABLE = "MQTOOL_STREAM_PORT"

#: A password command with one of these characters is run by a shell.
_FOR_A_SHELL = r"[|&;<>()$`*?~]"


class Effect(Enum):
    """The effect of a command on the broker that it uses."""

    CHANGES = auto()  #: consumes messages or changes settings; asks first in a protected context
    SENDS = auto()  #: only publishes messages; asks itself before it declares something in a protected context
    READS = auto()  #: leaves messages and settings as they are; asks itself if options have it change something
    OWN = auto()  #: uses a broker that mqtool starts, so it takes no context
    NONE = auto()  #: uses no broker


class Protocol(StrEnum):
    """A protocol for sending and receiving messages."""

    AMQP_0_9_1 = "amqp0.9.1"
    AMQP_1_0 = "amqp1.0"


class Context(NamedTuple):
    """A named broker.

    Attributes:
        url: the broker's URL.
        management: the URL of its management API.
        password_command: a command that prints the password; used instead of a password in the URL.
        protected: ask before a command changes anything on the broker, even with --yes.
        protocol: the default of --protocol, for commands that take it.
    """

    name: str
    url: str
    management: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    password_command: str | None = None
    protected: bool = False
    protocol: str | None = None

    def __repr__(self) -> str:
        return f"Context({self.name!r})"  # without the URL's password

    def password(self) -> str | None:
        """Run the password command and return the first line of its output; None if there is no command.

        Raises:
            MqtoolError: the command cannot be run, failed, or printed no password.
        """
        if self.password_command is None:
            return None
        what = f"the password command of context {self.name!r}"
        try:
            words = _words(self.password_command)
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except (OSError, ValueError) as error:
            raise MqtoolError(f"cannot run {what}: {getattr(error, 'strerror', None) or error}", _EDIT) from error
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        if done.returncode:
            raise MqtoolError(f"{what} failed with exit code {done.returncode}{': ' * bool(said)}{said}", _EDIT)
        password = done.stdout.partition(b"\n")[0].rstrip(b"\r")
        if not password:
            raise MqtoolError(f"{what} printed no password", _EDIT)
        return password.decode("utf-8", "surrogateescape")


_EDIT = "'mqtool context edit' opens the file"
#: The keys of a context in the file, and the types of their values.
_KEYS = {each.replace("_", "-"): bool if each == "protected" else str for each in Context._fields[1:]}


class Contexts:
    """The contents of the configuration file.

    Attributes:
        in_use: the name of the context in use, if any.
        known: all contexts by name.
    """

    def __init__(self, in_use: str | None, known: Mapping[str, Context]) -> None:
        self.in_use = in_use
        self.known = known

    def named(self, name: str, said_by: str | None = None) -> Context:
        """Return the context with this name.

        Args:
            said_by: where the name comes from, for the error message; None if the user typed the name.

        Raises:
            UsageError: there is no such context.
        """
        if name in self.known:
            return self.known[name]
        where = f"{said_by}: " if said_by else ""
        listed = f"the contexts are {', '.join(self.known)}; " if self.known else ""
        adds = pasteable("context add --url amqp://user@host/vhost", name if is_name(name) else "staging")
        hint = did_you_mean(name, self.known, f"{listed}to add one: {adds}")
        raise UsageError(f"{where}unknown context {name!r}", hint)


def is_name(text: str) -> bool:
    """True if a context can have this name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text) is not None


def path() -> Path:
    """Return the path of the configuration file, which may not exist yet."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "mqtool" / "config.toml"


def read() -> str:
    """Read the configuration file; return an empty string if it does not exist.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return path().read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path()}: {reason}") from error


def load() -> Contexts:
    """Read and parse the configuration file.

    Raises:
        UsageError: the file cannot be read, or is not valid.
    """
    return parse(read())


def names() -> list[str]:
    """Return the names of all contexts, for completion; none if the file is not valid."""
    try:
        return [*load().known]
    except MqtoolError:
        return []


def use_context_before(context: "typer.Context", values: dict[str, Any]) -> frozenset[str]:
    """Put -C given before the command (mqtool -C prod list queues) into `values`, as if it were given after it.

    Returns:
        The names of the parameters that were given on the command line.
    """
    typed = {name for name in values if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    first = context.find_root().params.get("context")
    if first is not None and "context" in values and "context" not in typed:
        values["context"] = first
        typed.add("context")
    return frozenset(typed)


def parse(text: str) -> Contexts:
    """Parse the text of the configuration file.

    Raises:
        UsageError: the text is not valid; the message names the line.
    """
    if not text:
        return Contexts(None, {})
    import tomllib

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).rpartition(" (at ")
        line = re.match(r"line (\d+)", place)
        raise _bad(int(line[1]) if line else len(text.splitlines()), f"{what[:1].lower()}{what[1:]}") from error
    except RecursionError as error:
        raise UsageError(f"{path()}: a value is nested too deeply", _EDIT) from error
    for key in found.keys() - {"use", "contexts"}:
        raise _bad(_line_of(text, key), f"unknown key {key!r}")
    in_use, tables = found.get("use"), found.get("contexts", {})
    if not isinstance(in_use, str | None):
        raise _bad(_line_of(text, "use"), "'use' is not the name of a context")
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _bad(_line_of(text, "contexts"), "a context is written as [contexts.NAME]")
    for name, table in tables.items():
        _check(text, name, table)
    return Contexts(in_use, {name: _context(text, name, table) for name, table in tables.items()})


def _check(text: str, name: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            meant = did_you_mean(key, _KEYS, f"one of {', '.join(_KEYS)}")
            raise _bad(_line_of(text, key, name), f"context {name!r} has an unknown key {key!r}", meant)
        if not isinstance(value, _KEYS[key]):
            should = "true or false" if _KEYS[key] is bool else "a string in quotes"
            raise _bad(_line_of(text, key, name), f"{key!r} of context {name!r} is not {should}")
    if (protocol := table.get("protocol")) is not None and protocol not in [*Protocol]:
        raise _bad(_line_of(text, "protocol", name), f"'protocol' of context {name!r} is not {' or '.join(Protocol)}")
    if "url" not in table:
        raise _bad(_line_of(text, "contexts", name), f"context {name!r} has no url")


def _bad(line: int, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"{path()}, line {line}: {what}", hint or _EDIT)


def _line_of(text: str, key: str, table: str = "") -> int:
    """Return the line number of a key, or of a table's header; 1 if it is not found."""
    header = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            header = line
        if table in header and re.match(rf"\s*\[?[\"']?{re.escape(key)}\b", line):
            return number
    return 1


def _context(text: str, name: str, table: Mapping[str, Any]) -> Context:
    given = dict(table)
    for key in given.keys() & {"tls-ca", "tls-cert", "tls-key"}:
        file = Path(given[key])
        try:
            given[key] = path().parent / file.expanduser()
        except RuntimeError as error:
            what = f"{key!r} of context {name!r} is in an unknown home directory, {file.parts[0]}"
            raise _bad(_line_of(text, key, name), what) from error
    return Context(name, **{key.replace("-", "_"): value for key, value in given.items()})


def _words(command: str) -> list[str]:
    if re.search(_FOR_A_SHELL, command):
        return ["/bin/sh", "-c", command]
    return shlex.split(command)
