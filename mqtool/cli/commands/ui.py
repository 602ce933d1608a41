"""mqtool ui."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from mqtool.address import without_passwords
from mqtool.broker import state
from mqtool.cli import contexts, stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, chosen, typed_choice
from mqtool.cli.chosen_broker import Choice, running_at
from mqtool.cli.command_line import command
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, STREAM_PORT_VARIABLE, Effect
from mqtool.cli.display import output
from mqtool.cli.display.browser import opened
from mqtool.cli.options import ManagedBroker
from mqtool.cli.pipe.tapping import switched_on
from mqtool.errors import AccessRefused, MqtoolError, NotFound, UsageError
from mqtool.management import queues
from mqtool.ui.actions import ACTIONS, Actions
from mqtool.ui.copies import Copies
from mqtool.ui.page_server import PageServer, single_file
from mqtool.ui.records import records

if TYPE_CHECKING:
    from mqtool.taps import Tap
    from mqtool.ui.actions import Action, Actions
    from mqtool.ui.copies import Copies
    from mqtool.ui.page_server import Json

app = typer.Typer()

#: What the page of an empty virtual host proposes: a message that waits, its consumer, and a log that nobody gets.
_FIRST_STEPS = (["send", "hello"], ["receive"], ["emit-log", "topic", "kern.info", "lost"])

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
    access, password = access_to(broker), broker.options.password_file
    if password is not None and (str(password) == "-" or not password.is_file()):
        raise UsageError("the page's commands read the password again, so it must be in a regular file", "name a file")
    # If the page could not read what it shows, say so here rather than in the page.
    next(queues(access.management(), access.vhost, ("name",)), None)
    if allow_changes:
        ask("let a page change the broker", access, is_safe=True)
    if firehose:
        ask("switch the firehose on", access, is_safe=True)
    actions = _actions(broker, access, allow_changes=allow_changes)

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
            examples=[actions.shown(words, {}) for words in _FIRST_STEPS],
        )

    answers = {"/actions": actions.listed, "/preview": actions.preview, "/run": actions.run}
    server, stop = PageServer(start, port, answers), threading.Event()
    recording = None if record is None else _create(record)
    with stopping.calling(stop.set):
        output.show(server.url)
        if open_page:
            ending.enter_context(opened(server.url))
        if record is not None and recording is not None:
            _record(record, recording, start, stop)
        while not stop.wait(1.0):
            pass
    server.close()
    ending.close()


def _actions(broker: ManagedBroker, access: Access, *, allow_changes: bool) -> "Actions":
    """Return the actions that the page offers."""
    environment, url = {}, ""
    shown = _ShownBroker(chosen(broker.options), access)
    choice, kinds = shown.choice, shown.kinds
    if allow_changes or (kinds and access.protected is None):
        kinds = {*kinds, "change"}
    # Another context may be in use later, or another broker be started, but the page shows this one.
    options = typed_choice(broker.options)
    if choice.context is not None:
        options["--context"] = choice.context.name
    else:
        environment["MQTOOL_URL"], url = choice.url, options.pop("--url", without_passwords(choice.url))
    if "--password-file" in options:  # in a command of the page, /dev/stdin would be another file
        options["--password-file"] = str(Path(options["--password-file"]).resolve())
    chosen_by = [word for each in options.items() for word in each]
    if allow_changes and access.protected is not None:  # the user has agreed to changes
        chosen_by += ["--confirm", access.protected]
    environment[MANAGEMENT_VARIABLE] = access.management_url or ""
    if access.ignores_stream_variable:
        environment[STREAM_PORT_VARIABLE] = ""
    management = broker.management if "management" in broker.options.call.typed else None
    return Actions(
        chosen_by,
        kinds,
        url=url,
        environment=environment,
        name=shown.started.name if shown.started else "",
        management=management or "",
        is_still=shown.is_still,
    )


class _ShownBroker:
    """The broker that the page shows.

    Attributes:
        choice: how the user chose it.
        started: the record of `broker up`, if that has started it.
        kinds: why the page may change it: "own" if mqtool has started it, "embedded" if it is an embedded broker.
    """

    def __init__(self, choice: Choice, access: Access) -> None:
        self.choice = choice
        self._access = access._replace(wait=None, backoff=None)
        self.started = running_at(access.address)
        self.kinds = set() if self.started is None else {"own"}
        with suppress(MqtoolError):  # then no command could change it
            self.kinds |= {"embedded"} if self._is_embedded() else set()

    def is_still(self, action: "Action") -> bool:
        """True if an action would use this broker, or another embedded one that took its place.

        By now, the context may name another broker, or another broker may listen at the address or have the name.

        Raises:
            MqtoolError: the broker cannot be reached, or there is no such context.
        """
        context, own = self.choice.context, self.started
        if context is not None and contexts.load().named(context.name) != context:
            return False
        if action.only == "own" and own is not None:  # it may be down
            return (last := state.load_last(own.name)) is not None and last.url == own.url
        # Explaining a route needs no connection to the broker, and must work while a fault refuses connections.
        proof = self._has_embedded_api if action is ACTIONS["route"] else self._is_embedded
        if "embedded" in self.kinds and not proof():
            return False
        found = running_at(self._access.address)
        if found is None and own is not None:
            self._access.connect().close()  # raises Unavailable if it is down, rather than replaced by another one
        return (found and found.name) == (own and own.name)

    def _is_embedded(self) -> bool:
        """True if both the broker and the management API belong to an embedded broker.

        The user may have named the management API of another one.
        """
        if not self._has_embedded_api():
            return False
        with self._access.connect() as connection:
            return connection.broker_to_show == "the embedded broker"

    def _has_embedded_api(self) -> bool:
        try:
            list(self._access.management().items("mqtool/faults"))  # a restart may have moved the API to another port
        except (NotFound, AccessRefused):
            return False
        return True


def _record(path: Path, file: IO[bytes], start: "Callable[[], Iterator[Json]]", stop: threading.Event) -> None:
    """Collect records until `stop` is set or the limit is reached, then write an HTML page that replays them.

    Args:
        path: the name of the file, for messages.
        file: as _create() returns it.
    """
    kept = []
    try:
        for each in start():
            if stop.is_set():
                break
            # Keep only records that the page needs to replay events; leave out those that report no change.
            if each["kind"] in ("about", "topology", "snapshot", "event") or each.get("queues"):
                kept.append(each)
            if len(kept) == _MAX_RECORDS:
                output.warning(f"the recording ends, because it has reached its limit of {_MAX_RECORDS:,} records")
                break
    finally:  # an error must not lose what has been recorded
        _write(path, file, single_file(kept))
        output.status(f"{sum(each['kind'] == 'event' for each in kept):,} events written to {path}")


def _create(path: Path) -> IO[bytes]:
    """Create the file that will contain messages, and open it for writing. Only this user can read it."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError as error:
        raise UsageError(f"{path} already exists", "name another file, or delete this one") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, file: IO[bytes], page: bytes) -> None:
    if not output.is_same_file(file.fileno(), path):
        # Another user who can write to the directory may have put a link there, or a file to read what we write.
        if os.path.lexists(path):
            raise UsageError(f"cannot write {path}: another file has taken its place meanwhile")
        file = _create(path)
    try:
        with file:
            file.write(page)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
