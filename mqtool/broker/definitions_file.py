"""Definitions that a broker loads whenever mqtool starts it: https://www.rabbitmq.com/docs/definitions.

They are posted to its management API, which is the same for every kind of broker. What is there already stays, but
users, permissions and policies are as the file says.
"""

import json
from dataclasses import replace
from pathlib import Path

from mqtool.amqp import Address
from mqtool.broker import state
from mqtool.broker.state import Started
from mqtool.broker.waiting import connect_within
from mqtool.errors import MqtoolError, UsageError
from mqtool.management import path
from mqtool.management.client import Json

_PATIENCE = 30.0


def read(file: Path) -> Json:
    """Read definitions.

    Raises:
        UsageError: the file cannot be read, or does not hold definitions.
    """
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UsageError(f"cannot read {file}: {reason}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file} does not hold definitions", "'mqtool definitions export' writes such a file")
    return document


def remember(started: Started, file: Path | None) -> Started:
    """Have a broker load a file, if there is one, when it starts and when it starts again."""
    if file is None:
        return started
    started = replace(started, details={**started.details, "definitions": str(file)})
    state.save(started)
    return started


def load(started: Started) -> None:
    """Load its definitions, if it has any. It must accept connections.

    Raises:
        UsageError: the file cannot be read, or the broker does not take what is in it.
        TimedOut: the management API does not answer.
    """
    file = started.details.get("definitions")
    if file is None:
        return
    document = read(Path(file))
    where = path("definitions") if _names_vhosts(document) else path("definitions", Address().virtual_host)
    try:
        connect_within(_PATIENCE, lambda: started.management.post(where, document))
    except MqtoolError as error:
        raise UsageError(f"cannot load {file}: {error}", error.hint) from error


def _names_vhosts(document: Json) -> bool:
    """Whether it is of a whole broker. An export of one virtual host does not say of which."""
    return "vhosts" in document or any(
        "vhost" in item for items in document.values() if isinstance(items, list) for item in items
    )
