"""How the embedded broker's clock divides the time of the event loop among clients."""

import asyncio

import pytest

from mqtool.broker.embedded.model.clock import LoopClock


def test_every_client_is_served_while_all_clients_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 clients keep the embedded broker busy with requests that take 1 ms each. Every client is served at least once
    before any client is served for the 40th time.
    """
    served = [0] * 100
    milliseconds = 0
    monkeypatch.setattr(LoopClock, "elapsed", lambda _: milliseconds / 1000)

    async def serve_all() -> None:
        clock, loop, done = LoopClock(), asyncio.get_running_loop(), asyncio.Event()

        def serve(client: int) -> None:
            nonlocal milliseconds
            if clock.is_late:
                clock.take_turn(lambda: serve(client))
                return
            milliseconds += 1
            clock.spend(0.001)
            served[client] += 1
            if served[client] == 40:
                done.set()
            loop.call_soon(serve, client)

        for client in range(100):
            serve(client)
        await done.wait()

    asyncio.run(serve_all())
    assert min(served) > 0
