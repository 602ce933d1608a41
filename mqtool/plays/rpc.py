"""Tutorial 6."""

from mqtool.errors import ExitCode
from mqtool.stage.stage import Play, Stage


def play(stage: Stage) -> None:
    """No server, one request, several at once, and a bad one."""
    client, server = stage.terminals("client", "server")
    ask = f"mqtool rpc-client{stage.queue('rpc_queue')}"

    stage.say("A client asks, and nobody is there to answer. It must not wait for ever.")
    client.run(f"{ask} 30", code=ExitCode.UNAVAILABLE)
    stage.expect("without a server the client does not hang, but says so (exit 69)", client.count("no RPC server"), 1)

    stage.say("A server starts. The request says which queue the reply goes to.")
    server.start(f"mqtool rpc-server{stage.queue('rpc_queue')}")
    client.run(f"{ask} 30")
    stage.expect("fib(30) is 832040", client.after("[.] Got "), ["832040"])

    stage.say("Three requests at once: a correlation id in each reply tells to which request it belongs.")
    client.run(f"{ask} 6 7 8")
    stage.expect("three requests at once, each with its own answer", client.after("[.] Got "), ["8", "13", "21"])

    stage.say("A request that makes no sense is answered too, with an error, and must not end the server.")
    client.run(f"{ask} ten", code=ExitCode.BAD_DATA)
    client.run(f"{ask} 10")
    stage.expect("a bad request was answered with an error, and the server lives on", client.after("Got "), ["55"])

    server.interrupt()
    stage.expect(
        "the server was asked each of them once",
        server.after("[.] "),
        ["fib(30)", "fib(6)", "fib(7)", "fib(8)", "fib(ten)", "fib(10)"],
    )


PLAY = Play(
    "RPC",
    "A request over one queue, its reply over another, and a correlation id that tells which belongs to which.",
    play,
    queues=("rpc_queue",),
)
