"""Waiting for a broker that we have started, and saying why it did not start."""

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import log_files
from mqtool.broker.choice import Kind, starter_of
from mqtool.broker.state import Started
from mqtool.broker.waiting import connect_within
from mqtool.errors import MqtoolError, TimedOut, Unavailable

#: Seconds for a node to start: five are usual; a busy machine or a cluster needs more.
_START_PATIENCE = 90.0
_REVIVALS = 5


def wait_until_up(started: Started) -> Started:
    """Wait until a broker accepts connections; return it with the processes that it has now.

    Nodes of a cluster that start at the same time may fail (RabbitMQ 3.10: incompatible_feature_flags; 4.0: Mnesia in
    a wrong directory). They are started again.

    Raises:
        MqtoolError: it has ended.
        Unavailable: it does not accept connections in time.
    """
    revivals = _REVIVALS if started.nodes > 1 else 0

    def connect() -> Connection:
        nonlocal started, revivals
        starter = starter_of(started)
        if not starter.is_running(started):
            if not revivals:
                words = log_files.last_words(b"".join(starter.log(started, False)))
                raise MqtoolError(f"the broker ended while starting{words}", where_log_is(started))
            revivals -= 1
            started = starter.revive(started)
        if not starter.is_ready(started):
            raise Unavailable("it has started but is not ready yet")
        return Connection(parse_addresses(started.url))

    try:
        connect_within(_START_PATIENCE, connect).close()
    except TimedOut as error:
        raise Unavailable(str(error), where_log_is(started)) from error
    return started


def where_log_is(started: Started) -> str:
    """A hint that helps even when the broker is gone."""
    return f"see {started.directory}/{'node-*/log' if started.kind == Kind.NODE and started.nodes > 1 else 'log'}"
