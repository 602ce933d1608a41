"""The headers exchange, which has no tutorial of its own number."""

from demo.stage import OUTPUT, Demonstration, Stage, lines_of

_EMIT = "mqtool emit-log headers -e demo.headers_logs"
_RECEIVE = "mqtool receive-log headers -e demo.headers_logs"


def play(stage: Stage) -> None:
    """The same two headers, once with all, once with any."""
    emitter, both, either = stage.terminals("emitter", "all", "any")
    all_file, any_file = OUTPUT / "headers-all.log", OUTPUT / "headers-any.log"

    both.start(f"{_RECEIVE} --match all format=pdf type=report > {all_file}")
    either.start(f"{_RECEIVE} --match any format=pdf type=report > {any_file}")
    emitter.run(f"{_EMIT} -H format=pdf -H type=log 'A log, printed'")
    emitter.run(f"{_EMIT} -H format=zip -H type=report 'A report, packed'")
    emitter.run(f"{_EMIT} -H format=zip -H type=log 'A log, packed'")
    emitter.run(f"{_EMIT} -H format=pdf -H type=report 'A report, printed'")
    stage.wait_for_lines(all_file, 1)
    stage.wait_for_lines(any_file, 3)
    both.interrupt()
    either.interrupt()
    both.run(f"cat {all_file}")
    either.run(f"cat {any_file}")

    stage.expect("--match all got what has both headers", lines_of(all_file), [" [x] A report, printed"])
    stage.expect(
        "--match any got what has at least one",
        lines_of(any_file),
        [" [x] A log, printed", " [x] A report, packed", " [x] A report, printed"],
    )


demonstration = Demonstration(
    "Headers",
    "A headers exchange lets receivers choose by several attributes at once.",
    play,
    exchanges=("demo.headers_logs",),
)
