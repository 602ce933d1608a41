"""Tutorial 6."""

from demo.stage import Demonstration, Stage
from mqtool.errors import ExitCode

_CLIENT = "mqtool rpc-client -q demo.rpc"


def play(stage: Stage) -> None:
    """No server, one request, several at once, and a bad one."""
    client, server = stage.terminals("client", "server")

    client.run(f"{_CLIENT} 30", code=ExitCode.UNAVAILABLE)
    stage.expect("without a server the client does not hang, but says so (exit 69)", client.count("no RPC server"), 1)

    server.start("mqtool rpc-server -q demo.rpc")
    client.run(f"{_CLIENT} 30")
    stage.expect("fib(30) is 832040", client.after("[.] Got "), ["832040"])

    client.run(f"{_CLIENT} 6 7 8")
    stage.expect("three requests at once, each with its own answer", client.after("[.] Got "), ["8", "13", "21"])

    client.run(f"{_CLIENT} ten", code=ExitCode.BAD_DATA)
    client.run(f"{_CLIENT} 10")
    stage.expect("a bad request was answered with an error, and the server lives on", client.after("Got "), ["55"])

    server.interrupt()
    stage.expect(
        "the server was asked each of them once",
        server.after("[.] "),
        ["fib(30)", "fib(6)", "fib(7)", "fib(8)", "fib(ten)", "fib(10)"],
    )


demonstration = Demonstration(
    "RPC",
    "A request over one queue, its reply over another, and a correlation id that tells which belongs to which.",
    play,
    queues=("demo.rpc",),
)
