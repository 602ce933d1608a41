"""mqtool doctor."""

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mqtool import management, taps
from mqtool.amqp import Address, Connection, Receiving
from mqtool.amqp.subscription import Buffer
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output, reports
from mqtool.cli.options import ManagedBroker
from mqtool.cli.options.queue_options import StreamPort
from mqtool.cli.pipe.existence import check_vhost
from mqtool.cli.pipe.source import text_of
from mqtool.cli.values import TIME_LIMIT, parsed
from mqtool.errors import AccessRefused, BadAnswer, MqtoolError, NotFound, SomeFailed, TimedOut, Unavailable, UsageError
from mqtool.inspection import connected_clients, definitions, diagnosis, helper_names, queue_details, upgrade
from mqtool.inspection.converted_definitions import unmatched_policies
from mqtool.inspection.findings import Finding, Unchecked, not_checked, worst_first
from mqtool.inspection.traffic import Traffic, changes_messages
from mqtool.inspection.upgrade import Version
from mqtool.management import Management
from mqtool.spelling import counted
from mqtool.work import peeking

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

app = typer.Typer()

_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Seconds to wait for a connection to the network address.
_PATIENCE = 5
#: How many copies to keep while mqtool is busy.
_KEPT = 100_000
#: Seconds to wait for a reply with --format nagios. NRPE ends a check after 10 s. In that time, mqtool also has to
#: start, and may look for the management API at two ports.
_CHECK_PATIENCE = 4.0
Format = Literal["text", "json", "nagios", "prometheus", "sarif"]


@command(
    app,
    "mqtool doctor",
    "mqtool doctor --vhost staging --json",
    "mqtool doctor --upgrade 4.3 --peek 10",
    "mqtool doctor --upgrade 4.3 --traffic orders --for 30s",
    "mqtool doctor definitions.json --upgrade 4.3 --format sarif",
    effect=Effect.READS,
    heading="See",
)
def doctor(
    broker: ManagedBroker,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Definitions to check instead of a broker; - for stdin")
    ] = None,
    between: Annotated[float, typer.Option(help="Time between the two samples that are compared", **TIME_LIMIT)] = 3.0,
    upgrade_to: Annotated[
        Version | None,
        typer.Option(
            "--upgrade",
            parser=parsed(Version.of),
            metavar="VERSION",
            help="Report what RabbitMQ VERSION would refuse or change",
        ),
    ] = None,
    peek: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also check N messages per queue; delivers each of them once")
    ] = 0,
    traffic: Annotated[
        str | None,
        typer.Option(metavar="QUEUE|EXCHANGE", help="Also check the messages that pass, from copies of them"),
    ] = None,
    watched_for: Annotated[float, typer.Option("--for", help="How long to watch --traffic", **TIME_LIMIT)] = 30.0,
    count: Annotated[
        int | None, typer.Option("--count", "-c", min=1, metavar="N", help="Stop --traffic after N messages")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Format: text, json, nagios, prometheus or sarif", metavar="FORMAT")
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print NDJSON, as --format json does")] = False,
    stream_port: StreamPort = None,
) -> None:
    """Check a broker, or a definitions file, and report problems.

    Exits with 3 if there are problems, or if something could not be checked, for example because the user lacks a tag.
    With --format nagios, exits with 1 for problems, with 2 for critical problems, and with 3 if the state is unknown.
    With --format prometheus, exits with 0 if the broker could be checked.
    """
    form = "json" if as_json else form
    for given, what in ((traffic, "--traffic"), (peek or None, "--peek"), (file, "a file")):
        if given is not None and upgrade_to is None:
            raise UsageError(f"{what} needs --upgrade", f"add --upgrade {upgrade.V4_3}")
    if file is not None and traffic is not None:
        raise UsageError("--traffic needs a broker, not a file", "leave out the file, or --traffic")
    if file is not None:
        found = worst_first(_of_file(file, broker.options.vhost, cast("Version", upgrade_to)))
        _report(found, form, str(file), file)
        return
    access = access_to(broker)
    if form == "nagios":
        access = _hurried(access)
        with suppress(AccessRefused, NotFound, UsageError):  # a broker that refuses a user has answered
            access.connect().close()
    say = output.status if form in ("text", "json") else lambda _: None
    unchecked: list[Unchecked] = []
    if broker.options.vhost is None:
        check_vhost(access)
    if upgrade_to is not None:
        found = [*_of_upgrade(access, broker.options.vhost, upgrade_to, peek, unchecked)]
        found = worst_first(
            found + ([] if traffic is None else _of_traffic(access, traffic, watched_for, count, upgrade_to))
        )
    else:
        found = worst_first(_findings(access, broker.options.vhost, between, say, stream_port, unchecked))
    if access.vhost != "/" and form in ("text", "nagios"):  # the URL names another virtual host
        found = [each.in_default_vhost() if each.vhost == "/" else each for each in found]
    _report(found, form, str(access.address), unchecked=unchecked)


def _hurried(access: Access) -> Access:
    """Return an Access that soon gives up on a silent broker."""
    # On each node, a handshake may take twice the connection timeout; that of the stream protocol, three times.
    timeout = _CHECK_PATIENCE / 3 / len(access.addresses)
    addresses = [each._replace(connection_timeout=min(each.connection_timeout, timeout)) for each in access.addresses]
    return access._replace(addresses=addresses, patience=(_CHECK_PATIENCE / 2, _CHECK_PATIENCE))


def error_report(words: Sequence[str]) -> Callable[[MqtoolError], int] | None:
    """Return the function that reports an error to Nagios, if the command line asks for that; see commands."""
    forms = re.findall(r"--format[ =](\S+)", " ".join(words))
    return _report_to_nagios if forms[-1:] == ["nagios"] and "--json" not in words else None


def _report_to_nagios(error: MqtoolError) -> int:
    """Report an error on stdout, the only output that Nagios shows, and return one of Nagios's own exit codes."""
    is_down = isinstance(error, Unavailable) and not isinstance(error, BadAnswer | NotFound)
    state = reports.CRITICAL if is_down else reports.UNKNOWN
    try:
        output.show(reports.nagios_line(state, str(error)))
    except MqtoolError as unwritable:
        output.error(str(unwritable), unwritable.hint)
        return reports.UNKNOWN
    return state


def _report(
    found: list[Finding], form: Format, where: str, file: Path | None = None, unchecked: Sequence[Unchecked] = ()
) -> None:
    for each in unchecked if form != "nagios" else ():
        output.warning(str(each))
    if form in ("text", "json"):
        reports.show_findings(found, as_json=form == "json")
    elif form == "sarif":
        output.show_json(reports.sarif(found, file, unchecked), indent=2)
    else:
        nagios = form == "nagios"
        for line in reports.nagios(found, where, unchecked) if nagios else reports.prometheus(found, unchecked):
            output.show(line)
    if form == "nagios":
        raise SystemExit(reports.nagios_state(found, unchecked))
    hidden = not_checked(unchecked)
    what = counted(len(found), "finding") if found else "no problems found"
    summary = f"{what} {'at' if file is None else 'in'} {where}" + (f"; {hidden}" if hidden else "")
    if not (found or hidden):
        output.status(summary)
    elif form != "prometheus":
        hint = next((each.hint for each in unchecked if each.is_essential and each.hint), None)
        if file is not None:
            hint = "'mqtool definitions convert' makes a file that a newer RabbitMQ can import"
        raise SomeFailed(summary, hint)


def _of_file(file: Path, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    text = text_of(file)
    document = definitions.read_document(text, str(file))
    for finding in upgrade.file_findings(document, definitions.lines_of(text), wanted):
        if vhost is None or finding.vhost in (None, vhost):
            yield finding
    for assumed in unmatched_policies(document):
        if vhost is None or assumed.vhost in (None, vhost):
            output.warning(f"{assumed.thing} {assumed.what}; {assumed.hint}")
    _warn_of_unknown(wanted)


def _warn_of_unknown(wanted: Version) -> None:
    if wanted[:2] > upgrade.KNOWN[:2]:
        output.warning(f"this version of mqtool knows only the changes up to RabbitMQ {upgrade.KNOWN}")


def _tried(
    check: str, findings: Iterable[Finding], unchecked: list[Unchecked], failure: type[MqtoolError] = AccessRefused
) -> Iterator[Finding]:
    """Yield the findings of a check; if it fails, for example because the user may not see something, note why."""
    try:
        yield from findings
    except failure as error:
        unchecked.append(Unchecked.because(check, error))


def _of_upgrade(
    access: Access, vhost: str | None, wanted: Version, peek: int, unchecked: list[Unchecked]
) -> Iterator[Finding]:
    api = access.management()
    yield from upgrade.findings(api, vhost, wanted)
    yield from _tried("policies", upgrade.policy_findings(api, vhost, wanted), unchecked)
    yield from _tried("clients", connected_clients.findings(api, vhost, wanted), unchecked)
    yield from _tried("features", connected_clients.deprecated_features(api, wanted), unchecked)
    _note_hidden_queues(api, vhost, unchecked)
    if peek and _changes_messages(present := upgrade.running(api), wanted):
        yield from _of_messages(access, api, vhost, present, wanted, peek, unchecked)
    for note in upgrade.notes(api, wanted):
        output.status(f"RabbitMQ {note.since}: {note.text}")
    _warn_of_unknown(wanted)


def _changes_messages(present: Version, wanted: Version) -> bool:
    """Return whether anything changes for messages between these versions; if nothing does, say so."""
    if changes_messages(present, wanted):
        return True
    output.notice(f"messages were not checked: from RabbitMQ {present} to {wanted}, nothing changes for them")
    return False


def _of_messages(
    access: Access,
    api: Management,
    vhost: str | None,
    present: Version,
    wanted: Version,
    most: int,
    unchecked: list[Unchecked],
) -> Iterator[Finding]:
    """Check up to `most` messages of each queue, from its head, and how often they were requeued and dead-lettered."""
    definitions_of = cache(lambda vhost: definitions.read(api, vhost))
    for queue in management.queues(api, vhost, ("name", "vhost", "type", "exclusive", "messages_ready", "arguments")):
        if not queue.get("messages_ready") or queue.get("exclusive") or queue.get("type") == "stream":
            continue
        name, there = queue["name"], queue["vhost"]
        headers = list[Mapping[str, Any]]()
        seen = Traffic(f"queue {name!r}", there, definitions_of(there), "", name)
        try:
            with (
                _in_vhost(access, there)._replace(backoff=None).connect() as connection,
                stopping.calling(connection.stop),
            ):
                channel = connection.channel()
                kind = peeking.kind_of(channel, name, api, there)
                with closing(peeking.peek(channel, name, kind, most)) as deliveries:
                    for each in stopping.until_requested(deliveries):
                        headers.append(each.headers)
                        seen.add(each)
        except MqtoolError as error:
            unchecked.append(Unchecked("messages", f"queue {name!r}: {error}", error.hint))
        stopping.exit_if_requested()
        if present < upgrade.V4_0:
            yield from upgrade.message_findings(queue, headers)
        yield from seen.findings(present, wanted)


def _of_traffic(access: Access, name: str, seconds: float, count: int | None, wanted: Version) -> list[Finding]:
    """Check copies of the messages that pass through a queue or an exchange, as `mqtool tap` copies them."""
    api, vhost = access.management(), access.vhost
    present = upgrade.running(api)
    if not _changes_messages(present, wanted):
        return []
    found, hint = definitions.read(api, vhost), "name an exchange, or look into the queues with --peek 10"
    if name in found.queues:
        try:
            bound = taps.like_queue(api, vhost, name)
        except UsageError as error:  # its hint is one for `mqtool tap`
            raise UsageError(str(error), hint) from error
        bound = bound._replace(notes=(f"not checked: messages that reach {name!r} through the default exchange",))
        seen = Traffic(f"queue {name!r}", vhost, found, "", name)
    elif name in ("", "amq.default"):
        raise UsageError("no copies can be made of messages to the default exchange", hint)
    elif name not in found.exchanges:
        raise NotFound(f"there is no queue or exchange {name!r} in vhost {vhost!r}", "'mqtool topology' shows them")
    else:
        bound = taps.to_exchange(lambda: api, vhost, name, (), {})
        seen = Traffic(f"exchange {name!r}", vhost, found, name, None)
    for note in bound.notes:
        output.notice(note)
    with access.connect() as connection, stopping.calling(connection.stop):
        receiving = Receiving(timeout=seconds, buffer=Buffer(_KEPT))
        tap = taps.Tap(connection.channel(), bound.bindings, receiving)
        output.status(f"watching {name!r} for {seconds:g} s …")
        with suppress(TimedOut):
            for message in islice(tap.deliveries, count):
                seen.add(message)
    output.status(f"{counted(seen.count, 'message')} passed through {name!r}")
    return list(seen.findings(present, wanted))


def _in_vhost(access: Access, vhost: str) -> Access:
    return access._replace(addresses=[each._replace(virtual_host=vhost) for each in access.addresses])


def _note_hidden_queues(api: Management, vhost: str | None, unchecked: list[Unchecked]) -> None:
    """Note in which virtual hosts the user may not see the queues. If only one is checked, its own check says so."""
    if vhost is None and (why := diagnosis.hidden_queues(api)) is not None:
        hint = "grant the user permissions there with 'mqtool permission set', or check one with --vhost"
        unchecked.append(Unchecked("queues", why, hint))


def _findings(
    access: Access,
    vhost: str | None,
    between: float,
    say: Callable[[str], None],
    stream_port: int | None,
    unchecked: list[Unchecked],
) -> Iterator[Finding]:
    api, stop = access.management(), threading.Event()
    api.get("overview")  # if there is no broker, this is the only error
    say(f"taking two samples, {between:g} s apart …")

    def wait() -> None:
        with stopping.calling(stop.set):
            if stop.wait(between):
                raise KeyboardInterrupt

    yield from _tried("nodes", diagnosis.of_nodes(api), unchecked)
    starting = diagnosis.starting_shovels(api, vhost)
    if vhost is None:  # the broker does not say in which virtual host a feature is used
        yield from _tried("deprecated", connected_clients.deprecated_features(api), unchecked)
    _note_hidden_queues(api, vhost, unchecked)
    before = _readers(access, api, vhost, stream_port, unchecked)
    yield from _tried("queues", diagnosis.findings(api, vhost, wait), unchecked)
    yield from _tried("links", diagnosis.of_links(api, vhost, starting), unchecked)
    if before:
        now = _readers(access, api, vhost, stream_port, unchecked)
        yield from queue_details.reader_findings(before, now)
    yield from diagnosis.of_firehose(api, vhost)
    yield from _tried("permissions", helper_names.findings(api, vhost), unchecked)
    yield from _tried("guest", _guest(api, access), unchecked, MqtoolError)


def _readers(
    access: Access, api: Management, vhost: str | None, port: int | None, unchecked: list[Unchecked]
) -> dict[tuple[str, str], queue_details.ReaderOffsets]:
    """Look up each named reader's stored offset; note if the broker cannot report them."""

    def connect(vhost: str) -> AbstractContextManager["StreamChannel"]:
        return _in_vhost(access, vhost).stream_channel(port)

    try:
        return queue_details.all_reader_offsets(api, vhost, connect)
    except MqtoolError as error:
        unchecked.append(Unchecked.because("readers", error))
        return {}


def _guest(api: Management, access: Access) -> Iterator[Finding]:
    """Try to log in as guest from the network with the default password; report if that succeeds."""
    address = access.address
    host = _seen_from_outside(api, address)
    if host is None:
        return
    guest = address._replace(host=host, user="guest", password="guest")  # noqa: S106
    try:
        Connection([guest], tls=access.tls).close()
    except AccessRefused:
        return
    yield Finding(
        "guest",
        "user 'guest'",
        f"can log in at {host}:{address.port} from the network with the default password",
        "mqtool user delete guest, or mqtool user password guest",
    )


def _seen_from_outside(api: Management, address: Address) -> str | None:
    """Return the address at which other machines reach the broker; None if it accepts only local connections."""
    if address.host not in _LOOPBACK:
        return address.host
    listeners: list[Any] | None = api.get("overview").get("listeners")
    if listeners is None:
        raise AccessRefused(f"the management API at {api.url} does not show user {api.user!r} the broker's listeners")
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
