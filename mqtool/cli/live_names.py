"""Completion of names from the broker: queues, exchanges and virtual hosts.

Somebody waits at the Tab key: after a third of a second (MQTOOL_COMPLETION_TIMEOUT), or without a broker, there are no
names, and no error either. Names that a shell cannot show on one line are left out.
"""

import os
import re
import threading
from typing import Any

import typer

from mqtool.amqp import TlsFiles
from mqtool.cli.access import MANAGEMENT_VARIABLE, Access, choose, resolve_addresses
from mqtool.duration import parse_duration
from mqtool.errors import MqtoolError

_PATIENCE = 0.3
_MOST = 200


def on_broker(ctx: typer.Context, kind: str, incomplete: str) -> list[str]:
    """The "queues", "exchanges" or "vhosts" whose names start with this."""
    import requests  # noqa: F401 - the clock starts after it

    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(_ask(ctx.params, kind, incomplete)), daemon=True)
    asking.start()
    asking.join(_patience())
    return [name for name in found if name.isprintable() and name.startswith(incomplete) and name]


def _patience() -> float:
    try:
        return parse_duration(os.environ["MQTOOL_COMPLETION_TIMEOUT"])
    except (KeyError, ValueError):
        return _PATIENCE


def _ask(params: dict[str, Any], kind: str, incomplete: str) -> list[str]:
    from mqtool.management import path

    given = {name: params.get(name) for name in ("user", "vhost", "password_file")}
    if str(given["password_file"]) == "-":
        del given["password_file"]
    # Commands that do not use the management API have no option for it, but the environment may say where it is.
    url = params.get("management") or os.environ.get(MANAGEMENT_VARIABLE)
    try:
        choice = choose(params.get("url"), params.get("context"))
        if choice.context and choice.context.password_command and not given.get("password_file"):
            return []  # nobody types a password at the Tab key
        access = Access(
            resolve_addresses(choice, **given), choice.tls(TlsFiles(params.get("tls_ca"))), choice.management(url)
        )
        api = access.management((_patience(), _patience()))
        if kind == "vhosts":
            return [view["name"] for view in api.get(kind, columns="name")]
        where = path(kind, access.vhost)
        query = {"page": "1", "page_size": str(_MOST), "columns": "name"}
        answer = api.get(where, **query, name=f"^{re.escape(incomplete)}", use_regex="true")
        return [view["name"] for view in answer["items"]]
    except MqtoolError:
        return []
