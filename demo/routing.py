"""Tutorial 4."""

from demo.stage import OUTPUT, Demonstration, Stage, lines_of

_EMIT = "mqtool emit-log direct -e demo.direct_logs"
_RECEIVE = "mqtool receive-log direct -e demo.direct_logs"


def play(stage: Stage) -> None:
    """Errors go to disk; a receiver with three bindings sees them all the same."""
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    file = OUTPUT / "errors.log"

    disk.start(f"{_RECEIVE} error > {file}")
    screen.start(f"{_RECEIVE} info warning error")
    emitter.run(f"{_EMIT} info 'All is well.'")
    emitter.run(f"{_EMIT} debug 'Nobody has asked for this.'")
    emitter.run(f"{_EMIT} warning 'It ticks.'")
    emitter.run(f"{_EMIT} error 'Run. Run. Or it will explode.'")
    stage.wait_for_lines(file, 1)
    screen.wait_for("[x]", 3)
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file}")

    stage.expect("the file has the error alone", lines_of(file), [" [x] error:Run. Run. Or it will explode."])
    stage.expect(
        "the screen shows the three severities it asked for",
        screen.after("[x] "),
        ["info:All is well.", "warning:It ticks.", "error:Run. Run. Or it will explode."],
    )


demonstration = Demonstration(
    "Routing",
    "A direct exchange lets receivers choose by severity; one may have several bindings.",
    play,
    exchanges=("demo.direct_logs",),
)
