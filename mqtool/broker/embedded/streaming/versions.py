"""Which versions of its commands the broker has, and what a client makes of that."""

from mqtool.broker.embedded.streaming.frames import Fields, Key, u16, u32
from mqtool.broker.embedded.streaming.session import Session

# In RabbitMQ's order: some clients go by the place in the list.
_COMMANDS = (
    Key.DECLARE_PUBLISHER,
    Key.PUBLISH,
    Key.QUERY_PUBLISHER_SEQUENCE,
    Key.DELETE_PUBLISHER,
    Key.SUBSCRIBE,
    Key.CREDIT,
    Key.STORE_OFFSET,
    Key.QUERY_OFFSET,
    Key.UNSUBSCRIBE,
    Key.CREATE,
    Key.DELETE,
    Key.METADATA,
    Key.CLOSE,
    Key.HEARTBEAT,
    Key.ROUTE,
    Key.PARTITIONS,
    Key.STREAM_STATS,
    Key.CREATE_SUPER_STREAM,
    Key.DELETE_SUPER_STREAM,
)


def exchange(session: Session, fields: Fields, correlation: int) -> None:
    """Tell each other which versions of which commands there are."""
    for _ in range(fields.number(4)):
        key, _lowest, highest = fields.number(2), fields.number(2), fields.number(2)
        if key == Key.DELIVER and highest >= 2:
            session.deliver_version = 2
    fields.end()
    commands = (u16(key) + u16(1) + u16(2 if key is Key.PUBLISH else 1) for key in _COMMANDS)
    session.answer(Key.EXCHANGE_COMMAND_VERSIONS, correlation, rest=u32(len(_COMMANDS)) + b"".join(commands))
