"""Tutorial 3."""

from mqtool.stage.stage import Play, Stage, lines_of


def play(stage: Stage) -> None:
    """One receiver writes to disk, the other to the screen; a message that nobody waits for is dropped."""
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    emit = f"mqtool emit-log fanout{stage.exchange('logs')}"
    receive = f"mqtool receive-log fanout{stage.exchange('logs')}"
    file = stage.file("logs.log")

    stage.say("This time, publish to an exchange. No queue is bound to it yet, so the message is dropped.")
    emitter.run(f"{emit} 'info: nobody listens'")
    stage.say("Start two receivers, each with its own queue. One writes to a file, the other to the screen.")
    disk.start(f"{receive} --raw > {file.name}")
    screen.start(receive)
    stage.say("A fanout exchange copies each message to every queue bound to it. The emitter does not know them.")
    emitter.run(emit)
    emitter.run(f"{emit} 'warning: it is late'")
    stage.wait_for_lines(file, 2)
    screen.wait_for("[x]", 2)
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file.name}")

    since = ["info: Hello World!", "warning: it is late"]
    stage.expect("the file has the messages published since then, and not the first one", lines_of(file), since)
    stage.expect("the screen shows the same messages", screen.after("[x] "), since)


PLAY = Play(
    "Publish/subscribe", "A fanout exchange gives every receiver a copy of each message.", play, exchanges=("logs",)
)
