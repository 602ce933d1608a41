"""Tutorial 1."""

from mqtool.stage.stage import Play, Stage


def play(stage: Stage) -> None:
    """Either side may start first: the queue keeps the message until somebody receives it."""
    sender, receiver = stage.terminals("sender", "receiver")

    stage.say("Nobody is receiving yet. Send a message anyway: it waits in a queue.")
    sender.run(f"mqtool send{stage.queue('hello')}")
    stage.say("Now start a receiver. It gets the message from the queue, then waits for more.")
    receiver.start(f"mqtool receive{stage.queue('hello')}")
    receiver.wait_for("[x] Received", 1)
    stage.say("With the receiver waiting, the next message arrives at once.")
    sender.run(f"mqtool send{stage.queue('hello')} 'Good morning!'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    stage.expect(
        "the receiver got both messages, including the one sent before it started",
        receiver.after("[x] Received "),
        ["Hello World!", "Good morning!"],
    )


PLAY = Play(
    "Hello World",
    "A sender, a receiver, and a queue between them that keeps messages until they are received.",
    play,
    queues=("hello",),
)
