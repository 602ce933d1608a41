"""Stream tutorial 2."""

from mqtool.stage.stage import Play, Stage

_NAME = "stream-offset-tracking-python"


def play(stage: Stage) -> None:
    """A reader that starts again continues after the offset that it has stored."""
    sender, receiver, third = stage.terminals("sender", "receiver", "offsets")
    stream, done = stage.queue(_NAME), "Done consuming first_offset: "

    stage.say("Send a hundred messages; the last one is a marker.")
    sender.run(f"mqtool offset-tracking send{stream}")
    stage.say("The receiver stores every tenth offset on the broker, and stops at the marker.")
    receiver.run(f"mqtool offset-tracking receive{stream}")
    stage.expect("it has read all hundred messages", receiver.after(done), ["0 last_offset 99 "])
    stage.say("The broker keeps, under the receiver's name, the offset of the last message that it is done with.")
    third.run(f"mqtool offset show {stage.name(_NAME)} subscriber_1")
    stage.expect("that is the marker's", third.lines, ["99"])
    stage.say("Send another hundred, and start the receiver again: it continues after the first marker.")
    sender.run(f"mqtool offset-tracking send{stream}")
    receiver.run(f"mqtool offset-tracking receive{stream}")
    first, last = (int(number) for number in receiver.after(done)[0].split(" last_offset "))
    stage.expect("it has read the second hundred, and none twice", (first >= 100, last - first), (True, 99))
    stage.say("To read all of it once more, forget the offset.")
    third.run(f"mqtool offset reset {stage.name(_NAME)} subscriber_1")
    receiver.run(f"mqtool offset-tracking receive{stream}")
    stage.expect("it started again", receiver.after(done), ["0 last_offset 99 "])


PLAY = Play(
    "Offset tracking",
    "The broker remembers how far a reader of a stream came, so that the next one goes on from there.",
    play,
    queues=(_NAME,),
    has_streams=True,
)
