"""Brokers that a person has named, in $XDG_CONFIG_HOME/mqtool/config.toml:

    use = "staging"

    [contexts.prod]
    url = "amqps://ann@mq.example.com/shop"
    password-command = "pass show mq/prod"
    protected = true

The file is read only where nothing else names the broker. It is its owner's: changes leave all other lines as they are.
"""

import os
import re
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple

from mqtool.errors import MqtoolError, UsageError
from mqtool.spelling import did_you_mean

VARIABLE = "MQTOOL_CONTEXT"

#: Characters that mean something to a shell only.
_FOR_A_SHELL = re.compile(r"[|&;<>()$`*?~]")


class Effect(Enum):
    """What a command does to the broker of a context."""

    CHANGES = auto()  #: It takes messages or changes settings. In a protected context, it asks first.
    SENDS = auto()  #: It only adds messages.
    READS = auto()
    OWN = auto()  #: It is about a broker that mqtool starts itself, and refuses a context.
    NONE = auto()  #: It uses no broker.


#: Every command, by its effect.
EFFECTS = {
    Effect.CHANGES: """
        receive, worker, rpc-server, receive-delayed, offset-tracking receive, offset set, offset reset, replay, move,
        delayed cancel, delayed now, dlq redrive, dlq drop, queue declare, queue delete, queue purge, exchange declare,
        exchange delete, bind, unbind, user add, user delete, user password, user tags, vhost add, vhost delete,
        permission set, permission clear, policy set, policy clear, definitions import, fault
    """,
    Effect.SENDS: """
        send, new-task, emit-log fanout, emit-log direct, emit-log topic, emit-log headers, rpc-client,
        publisher-confirms, send-delayed, send-stream, offset-tracking send
    """,
    Effect.READS: """
        receive-log fanout, receive-log direct, receive-log topic, receive-log headers, receive-stream, offset show,
        peek, tap, delayed ls, delayed show, dlq ls, dlq show, queue show, policy ls, definitions export,
        definitions diff, list queues, list exchanges, list bindings, list consumers, list connections, list channels,
        list vhosts, list users, list permissions, list plugins, topology, route, top, doctor, wait, broker up,
        broker status
    """,
    Effect.OWN: """
        broker down, broker ls, broker rm, broker logs, broker env, broker serve, broker restart, plugin enable,
        plugin disable, tutorial run, drill kill-worker, drill restart-broker, drill kill-node, drill drop-connection,
        drill poison, drill duplicate
    """,
    Effect.NONE: """
        tutorial list, tutorial show, cheat, help, completion, scrub, reconcile, context add, context ls, context use,
        context show, context edit, context rm
    """,
}


def effect_of(command: str) -> Effect:
    """What a command does to a broker.

    Args:
        command: such as "queue purge".
    """
    return next(effect for effect, names in EFFECTS.items() if command in re.split(r",\s+", names.strip()))


class Context(NamedTuple):
    """A broker by name.

    Attributes:
        url: as of --url.
        management: as of --management.
        password_command: prints the password, instead of the one in the URL.
        protected: ask before anything in it is destroyed, even with --yes.
    """

    name: str
    url: str
    management: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    password_command: str | None = None
    protected: bool = False

    def __repr__(self) -> str:
        return f"Context({self.name!r})"  # no passwords

    def password(self) -> str | None:
        """What the password command prints on its first line; None without one.

        Raises:
            MqtoolError: it failed, or printed nothing.
        """
        if self.password_command is None:
            return None
        import subprocess

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
#: The keys of a context in the file, and their types there.
_KEYS = {each.replace("_", "-"): bool if each == "protected" else str for each in Context._fields[1:]}


class Contexts(NamedTuple):
    """All that a file holds.

    Attributes:
        in_use: the name of the context in use; None if none is.
    """

    in_use: str | None
    known: Mapping[str, Context]

    def named(self, name: str, said_by: str | None = None) -> Context:
        """The context of that name.

        Args:
            said_by: what asks for it, if that is not the command line.

        Raises:
            UsageError: there is none.
        """
        if name in self.known:
            return self.known[name]
        where = f"{said_by}: " if said_by else ""
        hint = did_you_mean(name, self.known, "'mqtool context ls' lists them, 'mqtool context add' adds one")
        raise UsageError(f"{where}there is no context {name!r}", hint)


def path() -> Path:
    """The file; it may not exist yet."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "mqtool" / "config.toml"


def read() -> str:
    """The file's text; empty if there is none.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path().read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path()}: {reason}") from error


def load() -> Contexts:
    """The contexts in the file.

    Raises:
        UsageError: it cannot be read, or is not valid.
    """
    return parse(read())


def names() -> list[str]:
    """The names that a shell may propose."""
    try:
        return [*load().known]
    except MqtoolError:
        return []


def parse(text: str) -> Contexts:
    """The contexts in a file's text.

    Raises:
        UsageError: it is not valid; the message names the line.
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
    for key in found.keys() - {"use", "contexts"}:
        raise _bad(_line_of(text, key), f"unknown key {key!r}")
    in_use, tables = found.get("use"), found.get("contexts", {})
    if not isinstance(in_use, str | None):
        raise _bad(_line_of(text, "use"), "'use' is not the name of a context")
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _bad(_line_of(text, "contexts"), "a context is written as [contexts.NAME]")
    for name, table in tables.items():
        _check(text, name, table)
    return Contexts(in_use, {name: _context(name, table) for name, table in tables.items()})


def _check(text: str, name: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            meant = did_you_mean(key, _KEYS, f"there are {', '.join(_KEYS)}")
            raise _bad(_line_of(text, key, name), f"context {name!r} has an unknown key {key!r}", meant)
        if not isinstance(value, _KEYS[key]):
            should = "true or false" if _KEYS[key] is bool else "a text in quotes"
            raise _bad(_line_of(text, key, name), f"{key!r} of context {name!r} is not {should}")
    if "url" not in table:
        raise _bad(_line_of(text, "contexts", name), f"context {name!r} has no url")


def _bad(line: int, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"{path()}, line {line}: {what}", hint or _EDIT)


def _line_of(text: str, key: str, table: str = "") -> int:
    """Where a key is, or a table's header; 1 if it is written in an unusual way."""
    header = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            header = line
        if table in header and re.match(rf"\s*\[?[\"']?{re.escape(key)}\b", line):
            return number
    return 1


def _context(name: str, table: Mapping[str, Any]) -> Context:
    given = {key.replace("-", "_"): value for key, value in table.items()}
    for key in given.keys() & {"tls_ca", "tls_cert", "tls_key"}:
        given[key] = path().parent / Path(given[key]).expanduser()
    return Context(name, **given)


def _words(command: str) -> list[str]:
    if _FOR_A_SHELL.search(command):
        return ["/bin/sh", "-c", command]
    import shlex

    return shlex.split(command)
