"""The plays of the stream tutorials."""

from mqtool.stage.stage import Play, Stage

_HELLO_STREAM = "hello-python-stream"


def _stream_hello_world(stage: Stage) -> None:
    sender, early, late, third = stage.terminals("sender", "early", "late", "third")
    stream = stage.queue(_HELLO_STREAM)
    received = f"' from stream {stage.name(_HELLO_STREAM)}"

    stage.say("A stream keeps messages after they have been read. Send a message before any reader starts.")
    sender.run(f"mqtool send-stream{stream} 'Hello, World!'")
    stage.say("A reader gets this message, and then each new one.")
    early.start(f"mqtool receive-stream{stream}")
    sender.run(f"mqtool send-stream{stream} 'Good morning!'")
    early.wait_for("Got message", 2)
    stage.say("A reader that starts later gets the same messages: reading removes nothing.")
    late.start(f"mqtool receive-stream{stream}")
    late.wait_for("Got message", 2)
    stage.say("The first message has the offset 0. A third reader starts at offset 1.")
    third.run(f"mqtool receive-stream{stream} --offset 1 -c 1")
    early.interrupt()
    late.interrupt()

    both = [f"Hello, World!{received}", f"Good morning!{received}"]
    for reader, what, expected in (
        (early, "the early reader got both messages", both),
        (late, "the late reader got both messages, too", both),
        (third, "the third reader got only the second message", both[1:]),
    ):
        stage.expect(what, reader.after("Got message: b'"), expected)


STREAM_HELLO_WORLD = Play(
    "Hello World, in a stream",
    "A stream keeps messages after they have been read, so each reader can start where it wants.",
    _stream_hello_world,
    queues=(_HELLO_STREAM,),
    has_streams=True,
)


_NAME = "stream-offset-tracking-python"


def _stream_offset_tracking(stage: Stage) -> None:
    sender, receiver, third = stage.terminals("sender", "receiver", "offsets")
    stream, done = stage.queue(_NAME), "Done consuming first_offset: "

    stage.say("Send a hundred messages; the last one is a marker.")
    sender.run(f"mqtool offset send{stream}")
    stage.say("The receiver stores every tenth offset on the broker, and stops at the marker.")
    receiver.run(f"mqtool offset receive{stream}")
    stage.expect("the receiver has read all hundred messages", receiver.after(done), ["0 last_offset 99 "])
    stage.say("Under the receiver's name, the broker stores the offset of the last message that was handled.")
    third.run(f"mqtool offset show {stage.name(_NAME)} subscriber_1")
    stage.expect("the stored offset is that of the marker", third.lines, ["99"])
    stage.say("Reset the offset: the receiver starts from the beginning again, and stops at the marker.")
    third.run(f"mqtool offset reset {stage.name(_NAME)} subscriber_1")
    receiver.run(f"mqtool offset receive{stream}")
    stage.expect("the receiver read the stream from its start again", receiver.after(done), ["0 last_offset 99 "])
    stage.say("Send another hundred messages, and start the receiver again: it continues after the first marker.")
    sender.run(f"mqtool offset send{stream}")
    receiver.run(f"mqtool offset receive{stream}")
    first, last = (int(number) for number in receiver.after(done)[0].split(" last_offset "))
    stage.expect(
        "the receiver read the second hundred messages, and none of the first", (first >= 100, last - first), (True, 99)
    )


STREAM_OFFSET_TRACKING = Play(
    "Offset tracking",
    "The broker remembers how far a reader of a stream has read, so that the reader can continue from there.",
    _stream_offset_tracking,
    queues=(_NAME,),
    has_streams=True,
)
