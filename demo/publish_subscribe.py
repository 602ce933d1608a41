"""Tutorial 3."""

from demo.stage import OUTPUT, Demonstration, Stage, lines_of

_EMIT = "mqtool emit-log fanout -e demo.logs"
_RECEIVE = "mqtool receive-log fanout -e demo.logs"


def play(stage: Stage) -> None:
    """One receiver writes to disk, the other to the screen; what nobody waits for is dropped."""
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    file = OUTPUT / "logs.log"

    emitter.run(f"{_EMIT} 'info: nobody listens'")
    disk.start(f"{_RECEIVE} --raw > {file}")
    screen.start(_RECEIVE)
    emitter.run(_EMIT)
    emitter.run(f"{_EMIT} 'warning: it is late'")
    stage.wait_for_lines(file, 2)
    screen.wait_for("[x]", 2)
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file}")

    since = ["info: Hello World!", "warning: it is late"]
    stage.expect("the file has what was published since, and not the message before", lines_of(file), since)
    stage.expect("the screen shows the same", screen.after("[x] "), since)


demonstration = Demonstration(
    "Publish/subscribe",
    "A fanout exchange gives every message to every receiver there is.",
    play,
    exchanges=("demo.logs",),
)
