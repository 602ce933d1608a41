"""mqtool ui."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqtool.address import without_passwords
from mqtool.cli import contexts, stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, chosen
from mqtool.cli.chosen_broker import Choice, running_at
from mqtool.cli.command_line import command
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, STREAM_PORT_VARIABLE, Effect
from mqtool.cli.display import output
from mqtool.cli.display.browser import opened
from mqtool.cli.options import ManagedBroker
from mqtool.cli.pipe.tapping import switched_on
from mqtool.errors import AccessRefused, MqtoolError, NotFound, UsageError
from mqtool.spelling import pasteable
from mqtool.ui.actions import Actions
from mqtool.ui.copies import Copies
from mqtool.ui.page_server import PageServer, single_file
from mqtool.ui.records import records

if TYPE_CHECKING:
    from mqtool.broker.state import Started
    from mqtool.management import Management
    from mqtool.taps import Tap
    from mqtool.ui.actions import Actions
    from mqtool.ui.copies import Copies
    from mqtool.ui.page_server import Json

app = typer.Typer()

#: The maximum number of records that --record keeps: ten minutes at 150 events per second.
_MAX_RECORDS = 100_000


@command(
    app,
    "mqtool ui",
    "mqtool ui --open",
    "mqtool ui --record seen.html",
    "mqtool ui --port 8080 --vhost orders",
    effect=Effect.READS,
    heading="See",
)
def ui(
    broker: ManagedBroker,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one", metavar="N")] = 0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser")] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a replay of the session to FILE, as an HTML page")
    ] = None,
    tap: Annotated[
        bool, typer.Option("--tap", help="With RabbitMQ: show individual messages by tapping exchanges")
    ] = False,
    firehose: Annotated[
        bool, typer.Option("--firehose", help="With RabbitMQ: show all messages, with the firehose")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Let the page make changes on any broker")
    ] = False,
) -> None:
    """Watch messages move through the topology, in a browser.

    Serves a page on this machine until Ctrl-C. The printed address contains a secret: anyone who knows it can read
    messages and change the broker. Without --allow-changes, the page can change only embedded brokers, and brokers that
    mqtool started.

    With the embedded broker, the page shows individual messages. With RabbitMQ, it shows counts and rates, and
    individual messages only with --tap or --firehose.
    """
    if str(broker.options.password_file) == "-":
        raise UsageError("the page's commands need the password, too, and cannot read it from stdin", "name a file")
    access = access_to(broker)
    api = access.management()
    api.get("whoami")  # if the broker cannot be reached, say so here rather than in the page
    if allow_changes:
        ask("let a page change the broker", access, is_safe=True)
    if firehose:
        ask("switch the firehose on", access, is_safe=True)
    actions = _actions(broker, access, api, allow_changes=allow_changes)

    if record is not None:
        _create(record)
    ending = ExitStack()
    taps: set[Tap] = set()

    def copies() -> "Copies":
        switch = functools.partial(switched_on, access) if firehose else None
        found = Copies(access.connect, access.vhost, switch, taps, report=output.notice)
        ending.callback(found.close)
        return found

    def start() -> "Iterator[Json]":
        return records(
            access.management,
            access.vhost,
            access.title,
            copies if tap or firehose else None,
            example=pasteable("send --url=", str(access.address), "hello"),
        )

    answers = {"/actions": actions.listed, "/preview": actions.preview, "/run": actions.run}
    server, stop = PageServer(start, port, answers), threading.Event()
    with stopping.calling(stop.set):
        output.show(server.url)
        if open_page:
            ending.enter_context(opened(server.url))
        if record is not None:
            _record(record, start, stop)
        while not stop.wait(1.0):
            pass
    server.close()
    ending.close()


#: Options that choose a broker and contain no secret.
_CHOOSING = ("vhost", "user", "password_file", "tls_ca", "tls_cert", "tls_key")


def _actions(broker: ManagedBroker, access: Access, api: "Management", *, allow_changes: bool) -> "Actions":
    """Return the actions that the page offers."""
    options, environment, url = broker.options, {}, ""
    chosen_by: list[str] = []
    choice, started = chosen(options), running_at(access.address)
    kinds = _kinds(started, api)
    is_still = functools.partial(_is_still, choice, set() if allow_changes else kinds, access, api)
    if allow_changes or (kinds and access.protected is None):
        kinds = {*kinds, "change"}
    # Another context may be in use later, or another broker be started, but the page shows this one.
    if choice.context is not None:
        chosen_by = ["--context", choice.context.name]
    else:
        environment["MQTOOL_URL"], url = choice.url, without_passwords(choice.url) if choice.is_typed else ""
    chosen_by += [
        word
        for name in _CHOOSING
        if name in options.call.typed
        for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]
    if allow_changes and access.protected is not None:  # the user has agreed to changes
        chosen_by += ["--confirm", access.protected]
    environment[MANAGEMENT_VARIABLE] = access.management_url or ""
    if access.ignores_stream_variable:
        environment[STREAM_PORT_VARIABLE] = ""
    management = broker.management if "management" in options.call.typed else None
    name = started.name if started else ""
    return Actions(
        chosen_by, kinds, url=url, environment=environment, name=name, management=management or "", is_still=is_still
    )


def _kinds(started: "Started | None", api: "Management") -> set[str]:
    """Return why the page may change a broker: it is "own" if mqtool has started it, or "embedded"."""
    kinds = set() if started is None else {"own"}
    try:
        list(api.items("mqtool/faults"))
        kinds |= {"embedded"}
    except (NotFound, AccessRefused):
        pass
    return kinds


def _is_still(choice: Choice, kinds: set[str], access: Access, api: "Management", changes: bool) -> bool:
    """True if the broker is still the page's and, before a change, one that the page may change.

    By now, its context may name another broker, or another broker may listen at its address.
    """
    try:
        if choice.context is not None and contexts.load().named(choice.context.name) != choice.context:
            return False
        return not (changes and kinds) or _kinds(running_at(access.address), api) >= kinds
    except MqtoolError:
        return False


def _record(path: Path, start: "Callable[[], Iterator[Json]]", stop: threading.Event) -> None:
    """Collect records until `stop` is set or the limit is reached, then write an HTML file that replays them."""
    kept = []
    for each in start():
        if stop.is_set():
            break
        # Keep only records that the page needs to replay events; leave out those that report no change.
        if each["kind"] in ("about", "topology", "snapshot", "event") or each.get("queues"):
            kept.append(each)
        if len(kept) == _MAX_RECORDS:
            output.warning(f"the recording ends, because it has reached its limit of {_MAX_RECORDS:,} records")
            break
    _write(path, single_file(kept))
    output.status(f"{sum(each['kind'] == 'event' for each in kept):,} events written to {path}")


def _create(path: Path) -> None:
    """Create the file that will contain messages. Only this user can read it."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        raise UsageError(f"{path} already exists", "name another file, or delete this one") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, page: bytes) -> None:
    try:
        path.write_bytes(page)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
