"""Tutorial 5."""

import shlex

from demo.stage import OUTPUT, Demonstration, Stage, lines_of

_RECEIVE = "mqtool receive-log topic -e demo.topic_logs"
_CRITICAL = ("kern.critical", "A critical kernel error")
_MESSAGES = [("kern.info", "Booting"), ("cron.critical", "No time left"), ("anonymous.info", "Hello"), _CRITICAL]


def play(stage: Stage) -> None:
    """Three patterns, three files."""
    emitter, everything, kernel, critical = stage.terminals("emitter", "all", "kernel", "critical")
    # The last message goes to all, so that whoever has it has all that was before it.
    all_lines = [f" [x] {key}:{text}" for key, text in _MESSAGES]
    receivers = [
        (everything, "'#'", all_lines, "every message"),
        (kernel, "'kern.*'", [all_lines[0], all_lines[3]], "what the kernel said"),
        (critical, "'kern.*' '*.critical'", [all_lines[0], all_lines[1], all_lines[3]], "each match once, not twice"),
    ]

    for terminal, patterns, _, _ in receivers:
        terminal.start(f"{_RECEIVE} {patterns} > {OUTPUT}/topic-{terminal.name}.log")
    for key, text in _MESSAGES:
        emitter.run(f"mqtool emit-log topic -e demo.topic_logs {key} {shlex.quote(text)}")
    for terminal, _, lines, _ in receivers:
        stage.wait_for_lines(OUTPUT / f"topic-{terminal.name}.log", len(lines))
        terminal.interrupt()
    for terminal, _, _, _ in receivers:
        terminal.run(f"cat {OUTPUT}/topic-{terminal.name}.log")

    for terminal, patterns, lines, what in receivers:
        stage.expect(f"{patterns} got {what}", lines_of(OUTPUT / f"topic-{terminal.name}.log"), lines)


demonstration = Demonstration(
    "Topics",
    "A topic exchange lets receivers choose by pattern: * is one word of the key, # any number of them.",
    play,
    exchanges=("demo.topic_logs",),
)
