"""Tutorial 4."""

from mqtool.stage.stage import Play, Stage, lines_of


def play(stage: Stage) -> None:
    """Errors go to disk; a receiver with three bindings gets them too."""
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    emit = f"mqtool emit-log direct{stage.exchange('direct_logs')}"
    receive = f"mqtool receive-log direct{stage.exchange('direct_logs')}"
    file = stage.file("errors.log")

    stage.say("Each receiver names the severities it wants, with a binding for each. The file gets errors only.")
    disk.start(f"{receive} error > {file.name}")
    screen.start(f"{receive} info warning error")
    stage.say("A direct exchange routes a message to queues whose binding key equals its routing key, the severity.")
    emitter.run(f"{emit} info 'All is well.'")
    emitter.run(f"{emit} debug 'Nobody has asked for this.'")
    emitter.run(f"{emit} warning 'It ticks.'")
    emitter.run(f"{emit} error 'Run. Run. Or it will explode.'")
    stage.wait_for_lines(file, 1)
    screen.wait_for("[x]", 3)
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file.name}")

    stage.expect("the file has the error only", lines_of(file), [" [x] error:Run. Run. Or it will explode."])
    stage.expect(
        "the screen shows the three severities it asked for",
        screen.after("[x] "),
        ["info:All is well.", "warning:It ticks.", "error:Run. Run. Or it will explode."],
    )


PLAY = Play(
    "Routing",
    "A direct exchange lets receivers choose by severity. A receiver can have several bindings.",
    play,
    exchanges=("direct_logs",),
)
