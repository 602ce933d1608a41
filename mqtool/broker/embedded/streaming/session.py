"""What the parts of a connection need of it, so that they need not know the connection itself."""

from abc import abstractmethod
from collections.abc import MutableSet
from typing import Any

from mqtool.broker.embedded.client_socket import ClientSocket
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.errors import ChannelException
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_queue import Stream
from mqtool.broker.embedded.streaming.frames import HEAD, Code, Key, answer, frame


class Session(ClientSocket):
    """What the parts of a connection need of it, so that they need not know the connection itself.

    Attributes:
        deliver_version: the version of deliver that the client takes.
    """

    protocol = "stream"
    enough_out = 512 * 1024
    heartbeat_frame = frame(Key.HEARTBEAT)

    def __init__(self, broker: Broker, connections: MutableSet[Any]) -> None:
        super().__init__(broker, connections, "start", HEAD.size)
        self.deliver_version = 1

    @property
    def advertised(self) -> tuple[str, int]:
        """Host and port that the client finds streams at: those that it has come to."""
        return self.local

    def answer(self, key: Key, correlation: int, code: Code = Code.OK, rest: bytes = b"") -> None:
        """Answer a request."""
        self.write(answer(key, correlation, code, rest))

    @abstractmethod
    def watch(self, stream: str, log: StreamLog) -> None:
        """Notice from now on what becomes of a stream."""


class Refused(Exception):
    """A request is refused.

    Attributes:
        code: why.
        rest: what follows the code in the answer.
    """

    def __init__(self, code: Code, rest: bytes = b"") -> None:
        super().__init__(code.name)
        self.code = code
        self.rest = rest


def check(session: Session, what: str, kind: str, name: str, rest: bytes = b"") -> None:
    """Check that the user may `configure`, `write` or `read` a `queue` or an `exchange`.

    Raises:
        Refused: they may not.
    """
    try:
        session.rights.check(what, kind, name)
    except ChannelException as error:
        raise Refused(Code.ACCESS_REFUSED, rest) from error


def check_name(name: str) -> None:
    """Check the name of a producer or a consumer: at most 255 octets.

    Raises:
        Refused: it is too long.
    """
    if len(name.encode(errors="surrogateescape")) > 255:
        raise Refused(Code.PRECONDITION_FAILED)


def find_log(session: Session, stream: str, rest: bytes = b"") -> StreamLog:
    """Return the log of a stream.

    Raises:
        Refused: there is no such stream.
    """
    queue = session.vhost.queues.get(stream)
    if not isinstance(queue, Stream):
        raise Refused(Code.STREAM_DOES_NOT_EXIST, rest)
    return queue.log
