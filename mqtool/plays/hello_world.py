"""Tutorial 1."""

from mqtool.stage.stage import Play, Stage


def play(stage: Stage) -> None:
    """Either side may start first: the queue keeps the message until somebody receives."""
    sender, receiver = stage.terminals("sender", "receiver")

    stage.say("Nobody receives yet. We send a message all the same: it goes into a queue, and waits there.")
    sender.run(f"mqtool send{stage.queue('hello')}")
    stage.say("Now a receiver starts. It finds the message in the queue, and then waits for more.")
    receiver.start(f"mqtool receive{stage.queue('hello')}")
    receiver.wait_for("[x] Received", 1)
    stage.say("With the receiver waiting, a second message arrives at once.")
    sender.run(f"mqtool send{stage.queue('hello')} 'Good morning!'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    stage.expect(
        "the receiver got both messages, also the one sent before it started",
        receiver.after("[x] Received "),
        ["Hello World!", "Good morning!"],
    )


PLAY = Play(
    "Hello World",
    "One sends, one receives, and a queue in between keeps the message until it is fetched.",
    play,
    queues=("hello",),
)
