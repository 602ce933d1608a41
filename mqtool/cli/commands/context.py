"""mqtool context add, ls, use, show, edit, rm."""

import fcntl
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.address import without_passwords
from mqtool.amqp import parse_addresses
from mqtool.cli import contexts, stopping
from mqtool.cli.command_line import command, group
from mqtool.cli.contexts import Context, Contexts, Effect, Protocol
from mqtool.cli.display import layout, output
from mqtool.errors import MqtoolError, UsageError, reason_of
from mqtool.spelling import pasteable

app = group("context", "Name brokers, and choose the one to use.", heading="Broker")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the context", autocompletion=lambda: contexts.names())
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
_COMMENTS_AT_THE_END = re.compile(r"(?:^[ \t]*(?:#.*)?\n)*\Z", re.MULTILINE)
_COLUMNS = ("name", "url", "management", "protected", "in_use")
_NARROW = (("name", "url", "protected", "in_use"), ("name", "url", "in_use"))


def _pem(what: str) -> Any:
    return typer.Option(resolve_path=True, metavar="FILE", help=f"{what} (PEM)")


@command(
    app,
    "mqtool context add staging --url amqp://ann@staging.example.com/shop",
    "mqtool context add prod --url amqps://ann@mq.example.com --password-command 'pass show mq' --protected",
    effect=Effect.NONE,
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for the broker")],
    url: Annotated[
        str, typer.Option("--url", "-u", help="Broker URL: amqp://user:password@host:5672/vhost", metavar="URL")
    ],
    management: Annotated[str | None, typer.Option(metavar="URL", help="URL of the management API")] = None,
    tls_ca: Annotated[Path | None, _pem("Certificate authority to trust")] = None,
    tls_cert: Annotated[Path | None, _pem("Client certificate")] = None,
    tls_key: Annotated[Path | None, _pem("Private key of the client certificate")] = None,
    password_command: Annotated[
        str | None, typer.Option(help="Command that prints the password", metavar="COMMAND")
    ] = None,
    protected: Annotated[bool, typer.Option("--protected", help="Ask before any change, even with --yes")] = False,
    protocol: Annotated[
        Protocol | None, typer.Option(help="Protocol to use: amqp0.9.1, or amqp1.0 (RabbitMQ 4.0+)")
    ] = None,
) -> None:
    """Add a context: a name for a broker."""
    if not contexts.is_name(name):
        raise UsageError(f"{name!r} is not a valid context name", "use letters, digits, - and _")
    parse_addresses(url)
    given: dict[str, Any] = {"url": url, "management": management, "tls-ca": tls_ca, "tls-cert": tls_cert}
    given |= {"tls-key": tls_key, "password-command": password_command, "protected": protected or None}
    given["protocol"] = protocol
    lines = [f"{key} = {_value(value)}" for key, value in given.items() if value is not None]
    with _locked():
        text = contexts.read()
        known = contexts.parse(text)
        if name in known.known:
            raise UsageError(f"context {name!r} already exists", "change it with 'mqtool context edit'")
        before = f"{text.rstrip()}\n\n" if text.strip() else ""
        _write("\n".join((f"{before}[contexts.{name}]", *lines, "")), {*known.known, name}, known.in_use)
    output.status(
        f"added context {name!r} to {contexts.path()}; to make it the default: {pasteable('context use', name)}"
    )


@command(app, "mqtool context ls", "mqtool context ls --json", effect=Effect.NONE)
def ls(as_json: AsJson = False) -> None:
    """List the contexts."""
    known = contexts.load()
    rows = [_row(each, known) for each in known.known.values()]
    if not layout.show_rows(rows, _COLUMNS, narrower=_NARROW, as_json=as_json):
        output.status("no contexts yet; to add one: mqtool context add staging --url amqp://user@host/vhost")


@command(app, "mqtool context use staging", "mqtool context use --none", effect=Effect.NONE)
def use(
    name: Annotated[
        str | None, typer.Argument(autocompletion=lambda: contexts.names(), metavar="NAME", help="Name of the context")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Use no context")] = False,
) -> None:
    """Make a context the default for all commands."""
    if (name is None) != none:
        raise UsageError("give either the name of a context or --none", "'mqtool context ls' lists the contexts")
    with _locked():
        text = contexts.read()
        known = contexts.parse(text)
        if name is not None:
            known.named(name)
        _write(_using(text, name), {*known.known}, name)
    output.status(f"context {name!r} is in use" if name else "no context is in use")


@command(app, "mqtool context show", "mqtool context show prod --json", effect=Effect.NONE)
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of the context",
            show_default="the one in use",
            autocompletion=lambda: contexts.names(),
            metavar="NAME",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a context, without its passwords."""
    known = contexts.load()
    if (name := name or known.in_use) is None:
        raise UsageError("no context is in use", "name one; 'mqtool context ls' lists them")
    row = _row(known.named(name), known)
    if as_json:
        output.show_json(row)
        return
    for key, value in row.items():
        shown = {True: "yes", False: "no", None: "-"}.get(value, value)
        output.show(f"{key.replace('_', ' '):<18}{output.one_line(str(shown))}")


def _row(found: Context, known: Contexts) -> dict[str, Any]:
    row = {name: str(value) if isinstance(value, Path) else value for name, value in found._asdict().items()}
    for name in ("url", "management"):
        row[name] = row[name] and without_passwords(row[name])
    return row | {"in_use": found.name == known.in_use}


@command(app, "mqtool context edit", "EDITOR=nano mqtool context edit", effect=Effect.NONE)
def edit() -> None:
    """Edit the contexts in $VISUAL or $EDITOR.

    The file is replaced only if the new text is valid.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    path = contexts.path().resolve()  # it may be a symbolic link
    before = contexts.read()
    draft = _draft(path, before)
    try:
        with stopping.calling(lambda: None):  # Ctrl-C is for the editor
            code = subprocess.run([*shlex.split(command), draft], check=False).returncode
    except (OSError, ValueError) as error:
        draft.unlink()
        raise UsageError(f"cannot run the editor {command!r}: {reason_of(error)}", "set EDITOR") from error
    if code:
        draft.unlink()
        raise MqtoolError(f"the editor {command!r} failed with exit code {code}; nothing was changed")
    try:
        text = draft.read_text("utf-8")
        contexts.parse(text)
    except (UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"nothing was changed: {error}", f"your text is in {draft}") from error
    with _locked():
        if contexts.read() != before:
            raise MqtoolError(f"nothing was changed: {path} has been changed meanwhile", f"your text is in {draft}")
        draft.replace(path)
    output.status(f"saved {path}")


@command(app, "mqtool context rm staging", effect=Effect.NONE)
def rm(name: Name) -> None:
    """Remove a context."""
    with _locked():
        text = contexts.read()
        known = contexts.parse(text)
        known.named(name)
        in_use = None if known.in_use == name else known.in_use
        _write(_without(text if in_use else _using(text, None), name).lstrip("\n"), {*known.known} - {name}, in_use)
    output.status(f"removed context {name!r}")


def _using(text: str, name: str | None) -> str:
    lines = text.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    head = [line for line in lines[:end] if not re.match(r"\s*use\s*=", line)]
    use = [] if name is None else [f"use = {_value(name)}\n", *["\n"] * (not head)]
    return "".join((*use, *head, *lines[end:]))


def _without(text: str, name: str) -> str:
    header = re.compile(rf"[ \t]*\[\s*contexts\s*\.\s*([\"']?){re.escape(name)}\1\s*\]")
    blocks = re.split(r"^(?=[ \t]*\[)", text, flags=re.MULTILINE)
    return "".join(_COMMENTS_AT_THE_END.findall(block)[0] if header.match(block) else block for block in blocks)


def _value(value: Any) -> str:
    """Format a value as TOML. JSON's strings are valid TOML if DEL is escaped too."""
    return json.dumps(value if isinstance(value, bool) else str(value), ensure_ascii=False).replace("\x7f", r"\u007f")


@contextmanager
def _locked() -> Iterator[None]:
    """Make other commands that change the contexts wait until the block ends."""
    path = contexts.path().resolve().parent
    _make(path)
    try:
        directory = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _write(text: str, names: set[str], in_use: str | None) -> None:
    """Replace the file atomically. Raise MqtoolError unless `text` defines exactly `names` and `in_use`."""
    after = contexts.parse(text)
    path = contexts.path().resolve()
    if set(after.known) != names or after.in_use != in_use:
        raise MqtoolError(f"mqtool cannot change the layout of {path}", "edit it with 'mqtool context edit'")
    _draft(path, text).replace(path)


def _draft(path: Path, text: str) -> Path:
    """Write text to a temporary file in the directory of `path`. The caller renames that file to `path`."""
    _make(path.parent)
    try:
        descriptor, name = tempfile.mkstemp(".toml", "new-", path.parent)  # 0600
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        Path(name).unlink()
        raise MqtoolError(f"cannot write {path}: {error.strerror}") from error
    return Path(name)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(directory, error) from error


def _cannot_write(directory: Path, error: OSError) -> MqtoolError:
    hint = "set XDG_CONFIG_HOME to a directory that you can write to"
    return MqtoolError(f"cannot write to {directory}: {error.strerror}", hint)
