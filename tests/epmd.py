"""A program in place of epmd, Erlang's port mapper."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: The request that tells epmd to exit.
KILL = b"\x00\x01k"


@contextmanager
def epmd(answers: Sequence[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Listen on a free port, and send each of the answers on one connection. Yield the port, and a list to which the
    requests are added.
    """
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            for answer in answers:
                client, _ = listener.accept()
                with client:
                    asked.append(client.recv(100))
                    client.sendall(answer)

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    yield listener.getsockname()[1], asked
    serving.join()
