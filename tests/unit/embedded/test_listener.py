"""The embedded broker's listening sockets."""

import asyncio
import socket

import pytest

from mqtool.broker.embedded.sockets.listener import Listener


class _Accepted(asyncio.Protocol):
    def __init__(self, transport: "asyncio.Future[asyncio.BaseTransport]") -> None:
        self._transport = transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport.set_result(transport)


@pytest.mark.parametrize("again", [False, True], ids=["at first", "after connections were refused for a while"])
def test_the_embedded_broker_sends_small_frames_without_delay(again: bool) -> None:
    """The embedded broker sets TCP_NODELAY on each client connection that it accepts. Without this option, a small
    frame could wait up to 40 ms until the client's TCP has acknowledged the frame before it.
    """

    async def no_delay() -> int:
        transport = asyncio.get_running_loop().create_future()
        listener = Listener(lambda: _Accepted(transport))
        port = await listener.listen(["127.0.0.1"], 0)
        if again:
            listener.shut()
            listener.open()
        with socket.create_connection(("127.0.0.1", port)):
            accepted = await transport
            found: int = accepted.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.close()
        listener.close()
        return found

    assert asyncio.run(no_delay())
