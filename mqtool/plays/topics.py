"""Tutorial 5."""

import shlex

from mqtool.stage.stage import Play, Stage, lines_of

_CRITICAL = ("kern.critical", "A critical kernel error")
_MESSAGES = [("kern.info", "Booting"), ("cron.critical", "No time left"), ("anonymous.info", "Hello"), _CRITICAL]


def play(stage: Stage) -> None:
    """Three patterns, three files."""
    emitter, everything, kernel, critical = stage.terminals("emitter", "all", "kernel", "critical")
    exchange = stage.exchange("topic_logs")
    # The last message goes to all receivers, so whoever has it has everything before it.
    all_lines = [f" [x] {key}:{text}" for key, text in _MESSAGES]
    receivers = [
        (everything, "'#'", all_lines, "every message"),
        (kernel, "'kern.*'", [all_lines[0], all_lines[3]], "the kernel's messages"),
        (critical, "'kern.*' '*.critical'", [all_lines[0], all_lines[1], all_lines[3]], "each matching message once"),
    ]

    stage.say("Three receivers use patterns: * matches exactly one word of the routing key, # matches any number.")
    for terminal, patterns, _, _ in receivers:
        terminal.start(f"mqtool receive-log topic{exchange} {patterns} > {terminal.name}.log")
    stage.say("Send four messages. Each key has two words: who speaks, and how serious it is. Who will get which?")
    for key, text in _MESSAGES:
        emitter.run(f"mqtool emit-log topic{exchange} {key} {shlex.quote(text)}")
    for terminal, _, lines, _ in receivers:
        stage.wait_for_lines(stage.file(f"{terminal.name}.log"), len(lines))
        terminal.interrupt()
    stage.say("Now look at the files.")
    for terminal, _, _, _ in receivers:
        terminal.run(f"cat {terminal.name}.log")

    for terminal, patterns, lines, what in receivers:
        stage.expect(f"{patterns} got {what}", lines_of(stage.file(f"{terminal.name}.log")), lines)


PLAY = Play(
    "Topics",
    "A topic exchange lets receivers choose by pattern: * is one word of the key, # is any number of words.",
    play,
    exchanges=("topic_logs",),
)
