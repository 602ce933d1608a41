"""mqtool doctor."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mqtool.amqp import Address, Connection
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.command_line import Option
from mqtool.cli.display import output, reports
from mqtool.cli.options import TIME_LIMIT, Commands, ManagedBroker
from mqtool.cli.options.queue_options import StreamPort
from mqtool.errors import AccessRefused, MqtoolError, NotFound, SomeFailed, Unavailable
from mqtool.inspection import diagnosis, queue_details, upgrade
from mqtool.inspection.findings import Finding, worst_first
from mqtool.inspection.upgrade import Version
from mqtool.management import Management
from mqtool.spelling import counted

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

app = Commands()

_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Seconds to wait for a connection from the network address.
_PATIENCE = 5
Format = Literal["text", "json", "nagios", "prometheus"]


def _version(text: str) -> Version:
    try:
        return Version.of(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a version such as 4.3") from None


@app.command("mqtool doctor", "mqtool doctor --vhost staging --json", "mqtool doctor --upgrade 4.3")
def doctor(
    broker: ManagedBroker,
    between: Annotated[float, Option(help="Time between the two samples", **TIME_LIMIT)] = 3.0,
    upgrade_to: Annotated[
        Version | None,
        Option("--upgrade", parser=_version, metavar="VERSION", help="Report what RabbitMQ VERSION refuses or changes"),
    ] = None,
    form: Annotated[Format, Option("--format", help="Text, NDJSON, a Nagios check or metrics")] = "text",
    as_json: Annotated[bool, Option("--json", help="Print NDJSON, as --format json does")] = False,
    stream_port: StreamPort = None,
) -> None:
    """Check a broker and report problems.

    Exits 3 if there are problems. With --format nagios, exits 1, or 2 if a problem is critical; with --format
    prometheus, 0.
    """
    form = "json" if as_json else form
    try:
        access = broker.access()
        say = output.status if form in ("text", "json") else lambda _: None
        found = worst_first(_findings(access, broker.options.vhost, between, upgrade_to, say, stream_port))
    except MqtoolError as error:
        if form != "nagios":
            raise
        # Nagios shows only stdout, and defines its own exit codes.
        is_down = isinstance(error, Unavailable) and not isinstance(error, NotFound)
        state = reports.CRITICAL if is_down else reports.UNKNOWN
        output.show(reports.nagios_line(state, str(error)))
        raise SystemExit(state) from error
    _report(found, form, str(access.address))


def _report(found: list[Finding], form: Format, where: str) -> None:
    if form in ("text", "json"):
        reports.show_findings(found, as_json=form == "json")
    else:
        for line in reports.nagios(found, where) if form == "nagios" else reports.prometheus(found):
            output.show(line)
    if form == "nagios":
        raise SystemExit(reports.nagios_state(found))
    if not found:
        output.status(f"no problems found at {where}")
    elif form != "prometheus":
        raise SomeFailed(f"{counted(len(found), 'finding')} at {where}")


def _of_upgrade(api: Management, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    yield from upgrade.findings(api, vhost, wanted)
    for note in upgrade.notes(api, wanted):
        output.status(f"RabbitMQ {note.since}: {note.text}")
    if wanted > upgrade.KNOWN:
        output.warning(f"changes are known up to RabbitMQ {upgrade.KNOWN} only")


def _findings(
    access: Access,
    vhost: str | None,
    between: float,
    wanted: Version | None,
    say: Callable[[str], None],
    stream_port: int | None,
) -> Iterator[Finding]:
    api, stop = access.management(), threading.Event()
    if wanted is not None:
        yield from _of_upgrade(api, vhost, wanted)
        return

    say(f"looking twice, {between:g} s apart …")

    def wait() -> None:
        with stopping.calling(stop.set):
            if stop.wait(between):
                raise KeyboardInterrupt

    before = _readers(access, api, vhost, stream_port)
    yield from diagnosis.findings(api, vhost, wait)
    if before:
        yield from queue_details.reader_findings(before, _readers(access, api, vhost, stream_port))
    yield from diagnosis.of_firehose(api, vhost)
    try:
        yield from diagnosis.of_nodes(api)
    except AccessRefused as refused:
        output.warning(f"alarms were not checked: {refused}" + (f" ({refused.hint})" if refused.hint else ""))
    yield from _guest(api, access)


def _readers(
    access: Access, api: Management, vhost: str | None, port: int | None
) -> dict[tuple[str, str], queue_details.ReaderOffsets]:
    """Look up each named reader's stored offset; warn if the broker cannot report them."""

    def connect(vhost: str) -> AbstractContextManager["StreamChannel"]:
        addresses = [each._replace(virtual_host=vhost) for each in access.addresses]
        return access._replace(addresses=addresses).stream_channel(port)

    try:
        return queue_details.all_reader_offsets(api, vhost, connect)
    except MqtoolError as error:
        output.warning(f"readers of streams were not checked: {error}")
        return {}


def _guest(api: Management, access: Access) -> Iterator[Finding]:
    """Try to log in as guest from the network with the default password; report if that succeeds."""
    address = access.address
    try:
        host = _seen_from_outside(api, address)
        if host is None:
            return
        guest = address._replace(host=host, user="guest", password="guest")  # noqa: S106
        Connection([guest], tls=access.tls).close()
    except AccessRefused:
        return
    except MqtoolError as error:
        output.warning(f"logging in as guest from the network was not checked: {error}")
        return
    yield Finding(
        "guest",
        "user 'guest'",
        f"can log in at {host}:{address.port} from the network with the default password",
        "mqtool user delete guest, or mqtool user password guest",
    )


def _seen_from_outside(api: Management, address: Address) -> str | None:
    """The address at which other machines reach the broker; None if it only listens locally."""
    if address.host not in _LOOPBACK:
        return address.host
    listeners: list[Any] = api.get("overview").get("listeners") or []
    open_ones = [each for each in listeners if each.get("port") == address.port]
    if not any(each.get("ip_address") in _ALL_INTERFACES for each in open_ones):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; finds out this machine's address
            host = str(probe.getsockname()[0])
            # A broker in a container listens on all addresses, but Docker may publish its port on 127.0.0.1 only.
            socket.create_connection((host, address.port), _PATIENCE).close()
        except OSError:
            return None
        return host
