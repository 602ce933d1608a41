"""Tutorial 6."""

from mqtool.errors import ExitCode
from mqtool.stage.stage import Play, Stage


def play(stage: Stage) -> None:
    """No server, one request, several at once, and an invalid one."""
    client, server = stage.terminals("client", "server")
    ask = f"mqtool rpc-client{stage.queue('rpc_queue')}"

    stage.say("A client asks, but no server is running. The client must not wait forever.")
    client.run(f"{ask} 30", code=ExitCode.UNAVAILABLE)
    stage.expect("without a server, the client says so (exit 69) and does not hang", client.count("no RPC server"), 1)

    stage.say("Start a server. Each request names the queue for its reply.")
    server.start(f"mqtool rpc-server{stage.queue('rpc_queue')}")
    client.run(f"{ask} 30")
    stage.expect("fib(30) is 832040", client.after("[.] Got "), ["832040"])

    stage.say("Three requests at once: the correlation ID in each reply shows which request it answers.")
    client.run(f"{ask} 6 7 8")
    stage.expect("each of the three requests got its own answer", client.after("[.] Got "), ["8", "13", "21"])

    stage.say("An invalid request gets an error as its reply, and the server keeps running.")
    client.run(f"{ask} --text ten", code=ExitCode.BAD_DATA)
    client.run(f"{ask} 10")
    stage.expect("the invalid request got an error, and the server still answers", client.after("Got "), ["55"])

    server.interrupt()
    stage.expect(
        "the server received each request once",
        server.after("[.] "),
        ["fib(30)", "fib(6)", "fib(7)", "fib(8)", "fib(ten)", "fib(10)"],
    )


PLAY = Play(
    "RPC",
    "A request goes over one queue, its reply over another, and a correlation ID matches the two.",
    play,
    queues=("rpc_queue",),
)
