"""Enables and disables plugins of a broker that mqtool started, with rabbitmq-plugins.

https://www.rabbitmq.com/docs/man/rabbitmq-plugins.8
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Literal

from mqtool import management
from mqtool.broker import docker, node
from mqtool.broker.node import Node
from mqtool.broker.state import Started
from mqtool.errors import MqtoolError, Unavailable, UsageError
from mqtool.management import Management

#: Plugins that are part of the embedded broker.
BUILT_IN = ("rabbitmq_delayed_message_exchange", "rabbitmq_management")
_PATIENCE = 120.0
_UNTIL_SHOWN, _PAUSE = 15.0, 0.1


def change(started: Started, what: Literal["enable", "disable"], names: Sequence[str]) -> None:
    """Enable or disable plugins. The change persists across restarts. Safe to repeat."""
    if started.kind == "embedded":
        _check_built_in(what, names)
        return
    command = [what, *names]
    answers = (
        docker.execute(started, ["rabbitmq-plugins", *command])
        if started.kind == docker.Docker.kind
        else [_run(each, command) for each in node.nodes_of(started)]
    )
    for status, said in answers:
        if status:
            raise _failed(what, names, said)


def wait_until_shown(started: Started, what: Literal["enable", "disable"], names: Sequence[str]) -> bool:
    """Wait until the management API, if any, shows plugins as enabled or disabled; return False after 15 s."""
    deadline = time.monotonic() + _UNTIL_SHOWN
    try:
        while not _shows(started.management, what, names):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
    except Unavailable:
        return True
    return True


def _shows(api: Management, what: str, names: Sequence[str]) -> bool:
    for view in management.nodes(api):
        running = {application["name"] for application in view.get("applications", ())}
        if view.get("running", True) and not (running.isdisjoint(names) if what == "disable" else running >= {*names}):
            return False
    return True


def _run(of: Node, command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [_program(), *command],
            env=node.environment(of, for_tools=True),
            cwd=of.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"rabbitmq-plugins {command[0]} did not finish") from error
    return done.returncode, done.stdout


def _check_built_in(what: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in BUILT_IN:
            raise UsageError(f"the embedded broker has no plugin {name!r}", f"it has: {', '.join(BUILT_IN)}")
        if what == "disable":
            raise UsageError(f"{name} is built into the embedded broker", "it cannot be disabled")


def _program() -> str:
    server = node.find_server()
    beside = server and server.with_name("rabbitmq-plugins")
    found = str(beside) if beside and beside.exists() else shutil.which("rabbitmq-plugins")
    if found is None:
        raise Unavailable("rabbitmq-plugins is not installed", node.INSTALL)
    return found


def _failed(what: str, names: Sequence[str], said: str) -> MqtoolError:
    if "not_found" in said or "could not be found" in said:
        missing = [name for name in names if name in said]
        return UsageError(
            f"this broker has no plugin {', '.join(missing or names)}",
            "check the spelling; copy a third-party plugin into RabbitMQ's plugins directory first",
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return MqtoolError(f"cannot {what} {', '.join(names)}: {lines[-1] if lines else 'rabbitmq-plugins failed'}")
