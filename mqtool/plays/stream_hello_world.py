"""Stream tutorial 1."""

from mqtool.stage.stage import Play, Stage

_NAME = "hello-python-stream"


def play(stage: Stage) -> None:
    """Two readers get all of it, one after the other; a third starts in the middle."""
    sender, early, late, third = stage.terminals("sender", "early", "late", "third")
    stream = stage.queue(_NAME)
    received = f"' from stream {stage.name(_NAME)}"

    stage.say("A stream keeps what was read. Send a message before anybody reads.")
    sender.run(f"mqtool send-stream{stream} 'Hello, World!'")
    stage.say("A reader gets it, and what comes next.")
    early.start(f"mqtool receive-stream{stream}")
    sender.run(f"mqtool send-stream{stream} 'Good morning!'")
    early.wait_for("Got message", 2)
    stage.say("Whoever comes late gets the same messages: nothing was taken away.")
    late.start(f"mqtool receive-stream{stream}")
    late.wait_for("Got message", 2)
    stage.say("Messages are numbered from 0. A third reader starts at number 1.")
    third.run(f"mqtool receive-stream{stream} --offset 1 -c 1")
    early.interrupt()
    late.interrupt()

    both = [f"Hello, World!{received}", f"Good morning!{received}"]
    for reader, what, expected in (
        (early, "the early reader got both messages", both),
        (late, "so did the late one", both),
        (third, "the third got the second message alone", both[1:]),
    ):
        stage.expect(what, reader.after("Got message: b'"), expected)


PLAY = Play(
    "Hello World, in a stream",
    "A stream keeps messages after they were read, so each reader starts where it wants to.",
    play,
    queues=(_NAME,),
    has_streams=True,
)
