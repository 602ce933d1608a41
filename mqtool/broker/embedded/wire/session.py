"""A connection of AMQP 0-9-1 as its parts know it: octets are cut into frames, and what is sent collected."""

from abc import abstractmethod
from collections.abc import MutableSet
from typing import Any, Protocol

from pamqp.base import Frame

from mqtool.broker.embedded.client_socket import ClientSocket
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.errors import FRAME_ERROR
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.wire import frames
from mqtool.broker.embedded.wire.frame_errors import malformed
from mqtool.broker.embedded.wire.methods import encode_method
from mqtool.routing.field_table import Table

FRAME_MAX = 131_072
"""The largest frame, in bytes, that the broker agrees to."""

# Type, channel and size: enough to see that a frame is too large before the rest has come.
_FRAME_HEAD = 7


class Confirming(Protocol):
    """What a connection needs of a channel that has confirms to send."""

    def write_confirms(self) -> None:
        """Send the confirms that are due."""


class Session(ClientSocket):
    """What the parts of a connection need of it, so that they need not know the connection itself.

    Attributes:
        frame_max: the largest frame, in bytes, as negotiated.
        channel_max: the highest channel number, as negotiated.
        starving: queues to pump once it is writable.
        exclusive_queues: the queues that go with the connection.
        turn: counts what may have changed where messages go: each read, and each frame that is not of a publish.
    """

    enough_out = 256 * 1024
    heartbeat_frame = frames.HEARTBEAT_FRAME
    channel_max: int

    def __init__(self, broker: Broker, connections: MutableSet[Any]) -> None:
        super().__init__(broker, connections, "header", len(frames.PROTOCOL_HEADER))
        self.frame_max = FRAME_MAX
        self.starving: dict[Queue, None] = {}
        self.exclusive_queues: set[Queue] = set()
        self.turn = 0
        self._confirming: dict[Confirming, None] = {}

    @abstractmethod
    def greet(self) -> None:
        """Begin the handshake: the client speaks AMQP 0-9-1."""

    @abstractmethod
    def receive(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame.

        Raises:
            ConnectionException: the connection must be closed.
        """

    @abstractmethod
    def receive_publish(self, number: int, data: bytes, start: int, end: int) -> int:
        """Take a whole publish whose method is in `data[start:end]`; returns where it ends, 0 if it is not whole."""

    @abstractmethod
    def block(self) -> None:
        """Read no more from a client that publishes, as long as there is an alarm."""

    @abstractmethod
    def let_go(self, number: int) -> None:
        """Forget a channel."""

    def take_octets(self, data: bytes) -> int:
        """Take all complete frames and return the number of octets in them."""
        offset = 0
        self.turn += 1
        if self.state == "header":
            if data[:8] != frames.PROTOCOL_HEADER:
                self._refuse_protocol()
                return len(data)
            offset = 8
            self.state = "start"
            self.greet()
        size = len(data)
        unpack = frames.FRAME_HEADER.unpack_from
        while size - offset >= _FRAME_HEAD:
            kind, number, length = unpack(data, offset)
            # RabbitMQ puts up with a payload that leaves no room for the frame around it.
            if length > self.frame_max:
                limit = self.frame_max - frames.FRAME_OVERHEAD
                raise malformed(FRAME_ERROR, kind, b"", f"{{frame_too_large,{length},{limit}}}")
            start = offset + 7
            end = start + length
            if end >= size:
                self._need = length + frames.FRAME_OVERHEAD
                return offset
            if data[end] != 0xCE:
                raise malformed(FRAME_ERROR, kind, data[start:end], f"{{invalid_frame_end_marker,{data[end]}}}")
            if self.state == "closed":
                return size
            if kind == frames.METHOD and data.startswith(frames.BASIC_PUBLISH, start):
                after = self.receive_publish(number, data, start, end)
                if after:
                    offset = after
                    continue
            self.turn += 1
            self.receive(kind, number, data[start:end])
            offset = end + 1
        self._need = _FRAME_HEAD
        return offset

    def _refuse_protocol(self) -> None:
        """Tell a client that does not speak AMQP 0-9-1 that this is required, and hang up (section 4.2.2)."""
        self.write(self.broker.profile.first_choice)
        self.hang_up()

    def confirm_soon(self, channel: Confirming) -> None:
        """Send a channel's confirms at the end of this turn of the loop."""
        self._confirming[channel] = None
        self.flush_soon()

    def before_flush(self) -> None:
        """Write the confirms that are due."""
        for channel in self._confirming:
            channel.write_confirms()
        self._confirming.clear()

    def may_send(self) -> None:
        """Send consumers more: the client has caught up."""
        starving, self.starving = self.starving, {}
        for queue in starving:
            if not queue.deleted:
                queue.pump()

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method of the connection class."""
        self.write(frames.method_frame(0, encode_method(kind, **fields)))

    def capability(self, name: str) -> bool:
        """Whether the client said that it supports something."""
        capabilities = self.client_properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get(name) is True
