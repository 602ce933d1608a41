"""Tutorial 1."""

from demo.stage import Demonstration, Stage


def play(stage: Stage) -> None:
    """Either side may start first: the queue keeps the message until somebody receives."""
    sender, receiver = stage.terminals("sender", "receiver")

    sender.run("mqtool send -q demo.hello")
    receiver.start("mqtool receive -q demo.hello")
    sender.run("mqtool send -q demo.hello 'Good morning!'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    stage.expect(
        "the receiver got both messages, also the one sent before it started",
        receiver.after("[x] Received "),
        ["Hello World!", "Good morning!"],
    )


demonstration = Demonstration(
    "Hello World",
    "One sends, one receives, and a queue in between keeps the message until it is fetched.",
    play,
    queues=("demo.hello",),
)
