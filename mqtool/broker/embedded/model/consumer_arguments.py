"""Which arguments a consumer may have (RabbitMQ's rules and words)."""

from mqtool.broker.embedded.model.arguments import Check, boolean, printed
from mqtool.broker.embedded.model.errors import NOT_IMPLEMENTED, ConnectionException, precondition_failed
from mqtool.broker.embedded.model.options import OFFSET, interval
from mqtool.broker.embedded.model.queue import Queue
from mqtool.codecs.field_tables import Table, Timestamp, Value, is_integer, type_name

CONSUMER_ARGUMENTS: dict[str, Check] = {
    "x-priority": lambda value, _: None if is_integer(value) else f'"expected integer, got {type_name(value)}"',
    "x-cancel-on-ha-failover": boolean,
}

_SUPPORTED = {"classic": ("x-priority", "x-cancel-on-ha-failover"), "quorum": ("x-priority",), "stream": (OFFSET,)}


def check_consumer(queue: Queue, arguments: Table, *, prefetch: int, no_ack: bool) -> None:
    """Check a basic.consume.

    Raises:
        ChannelException: 406.
        ConnectionException: 540, a stream without acknowledgements.
    """
    where = f"queue '{queue.name}' in vhost '{queue.vhost}'"
    is_stream = queue.kind == "stream"
    for argument in (*CONSUMER_ARGUMENTS, OFFSET):
        if argument in arguments and argument not in _SUPPORTED[queue.kind]:
            raise precondition_failed(f"invalid arg '{argument}' for {where} of queue type rabbit_{queue.kind}_queue")
    for argument, check in CONSUMER_ARGUMENTS.items():
        if argument in arguments and (wrong := check(arguments[argument], arguments)) is not None:
            raise precondition_failed(f"invalid arg '{argument}' for {where}: {wrong}")
    if not is_stream:
        return
    if not prefetch:
        raise precondition_failed(f"consumer prefetch count is not set for '{where}'")
    if no_ack:
        raise ConnectionException(NOT_IMPLEMENTED, f"automatic acknowledgement not supported by stream queues {where}")
    if not _is_offset(arguments.get(OFFSET)):
        value = arguments[OFFSET]
        wrong = f'{{invalid_stream_offset_arg,{{{type_name(value)},<<"{printed(value)}">>}}}}'
        raise precondition_failed(f"invalid arg '{OFFSET}' for {where}: {wrong}")


def _is_offset(value: Value) -> bool:
    """Whether a consumer of a stream can begin there."""
    if isinstance(value, str):
        return value in ("first", "last", "next") or interval(value) is not None
    return value is None or is_integer(value) or isinstance(value, Timestamp)
