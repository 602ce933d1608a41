"""Tutorial 3."""

from mqtool.stage.stage import Play, Stage, lines_of


def play(stage: Stage) -> None:
    """One receiver writes to disk, the other to the screen; what nobody waits for is dropped."""
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    emit = f"mqtool emit-log fanout{stage.exchange('logs')}"
    receive = f"mqtool receive-log fanout{stage.exchange('logs')}"
    file = stage.file("logs.log")

    stage.say("We publish to an exchange now. Nobody has bound a queue to it yet, so it drops the message.")
    emitter.run(f"{emit} 'info: nobody listens'")
    stage.say("Two receivers start, each with a queue of its own. One writes to a file, the other to the screen.")
    disk.start(f"{receive} --raw > {file.name}")
    screen.start(receive)
    stage.say("A fanout exchange copies each message to every queue bound to it. The emitter knows nothing of them.")
    emitter.run(emit)
    emitter.run(f"{emit} 'warning: it is late'")
    stage.wait_for_lines(file, 2)
    screen.wait_for("[x]", 2)
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file.name}")

    since = ["info: Hello World!", "warning: it is late"]
    stage.expect("the file has what was published since, and not the message before", lines_of(file), since)
    stage.expect("the screen shows the same", screen.after("[x] "), since)


PLAY = Play(
    "Publish/subscribe", "A fanout exchange gives every message to every receiver there is.", play, exchanges=("logs",)
)
