"""mqtool doctor."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from mqtool.amqp import Address, Connection
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.options import TIME_LIMIT, Broker, ManagementUrl, takes_groups
from mqtool.errors import AccessRefused, MqtoolError, SomeFailed
from mqtool.inspection import diagnosis
from mqtool.inspection.finding import Finding, grouped, others, worst_first
from mqtool.inspection.listing import counted
from mqtool.management import Management

app = typer.Typer()

_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - looked for, not listened on
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@app.command(epilog="mqtool doctor\nmqtool doctor --vhost staging --json")
@takes_groups
def doctor(
    broker: Broker,
    between: Annotated[
        float, typer.Option("--between", help="Time between the two looks", show_default="3s", **TIME_LIMIT)
    ] = "3s",  # type: ignore[assignment]
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per finding")] = False,
    management: ManagementUrl = None,
) -> None:
    """Check a broker and report problems.

    Exits 3 if there are any.
    """
    access = broker.access(management)
    found = worst_first(_findings(access, broker.vhost, between))
    if as_json:
        for finding in found:
            output.show(json.dumps({**asdict(finding), "severity": finding.severity}, ensure_ascii=False))
    else:
        for finding, same in grouped(found):
            _show(finding, same)
    if found:
        raise SomeFailed(f"{counted(len(found), 'finding')} at {access.address}")
    output.status(f"no problems found at {access.address}")


def _findings(access: Access, vhost: str | None, between: float) -> Iterator[Finding]:
    api, stop = access.management(), threading.Event()

    def wait() -> None:
        with stopping.calling(stop.set):
            if stop.wait(between):
                raise KeyboardInterrupt

    output.status(f"looking twice, {between:g} s apart …")
    yield from diagnosis.findings(api, vhost, wait)
    try:
        yield from diagnosis.of_nodes(api)
    except AccessRefused as refused:
        output.warning(f"alarms were not checked: {refused}" + (f" ({refused.hint})" if refused.hint else ""))
    yield from _guest(api, access.address)


def _guest(api: Management, address: Address) -> Iterator[Finding]:
    """Whether anybody on the network may log in with the password that everybody knows: found by trying."""
    try:
        host = _seen_from_outside(api, address)
        if host is None:
            return
        Connection([replace(address, host=host, user="guest", password="guest")]).close()  # noqa: S106
    except MqtoolError:
        return
    yield Finding(
        "guest",
        "user 'guest'",
        f"can log in at {host}:{address.port} from the network with the default password",
        "mqtool user delete guest, or mqtool user password guest",
    )


def _seen_from_outside(api: Management, address: Address) -> str | None:
    """The broker's host as others see it; None if it listens to its own machine only."""
    if address.host not in _LOOPBACK:
        return address.host
    listeners: list[Any] = api.get("overview").get("listeners") or []
    open_ones = [each for each in listeners if each.get("port") == address.port]
    if not any(each.get("ip_address") in _ALL_INTERFACES for each in open_ones):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address this machine would send from
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _show(finding: Finding, same: Sequence[Finding]) -> None:
    text = f"{finding.where} {finding.what}{others(same)}"
    if output.is_terminal(1):
        text = output.visible(text)
    output.show(f"{output.styled(text, '1', 1)}\n  {finding.hint}")
