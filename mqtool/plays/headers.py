"""The headers exchange, which has no tutorial of its own number."""

from mqtool.stage.stage import Play, Stage, lines_of


def play(stage: Stage) -> None:
    """Match the same two headers, once with all, once with any."""
    emitter, both, either = stage.terminals("emitter", "all", "any")
    emit = f"mqtool emit-log headers{stage.exchange('headers_logs')}"
    receive = f"mqtool receive-log headers{stage.exchange('headers_logs')}"
    all_file, any_file = stage.file("all.log"), stage.file("any.log")

    stage.say("Both receivers name the same two headers. One wants messages with both of them, the other with either.")
    both.start(f"{receive} --match all format=pdf type=report > {all_file.name}")
    either.start(f"{receive} --match any format=pdf type=report > {any_file.name}")
    stage.say("A headers exchange ignores the routing key, and compares the headers of each message.")
    emitter.run(f"{emit} -H format=pdf -H type=log 'A log, printed'")
    emitter.run(f"{emit} -H format=zip -H type=report 'A report, packed'")
    emitter.run(f"{emit} -H format=zip -H type=log 'A log, packed'")
    emitter.run(f"{emit} -H format=pdf -H type=report 'A report, printed'")
    stage.wait_for_lines(all_file, 1)
    stage.wait_for_lines(any_file, 3)
    both.interrupt()
    either.interrupt()
    both.run(f"cat {all_file.name}")
    either.run(f"cat {any_file.name}")

    stage.expect("--match all got the message with both headers", lines_of(all_file), [" [x] A report, printed"])
    stage.expect(
        "--match any got the messages with at least one",
        lines_of(any_file),
        [" [x] A log, printed", " [x] A report, packed", " [x] A report, printed"],
    )


PLAY = Play(
    "Headers", "A headers exchange lets receivers choose by several headers at once.", play, exchanges=("headers_logs",)
)
