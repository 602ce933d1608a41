"""Delayed messages, which have no tutorial of their own number."""

from demo.stage import Demonstration, Stage

_SEND = "mqtool send-delayed -e demo.delay_exchange"
_RECEIVE = "mqtool receive-delayed -e demo.delay_exchange -q demo.delay_queue"
_EMIT = "mqtool emit-log topic -e demo.delayed_logs"
_LOGS = "mqtool receive-log topic -e demo.delayed_logs"
#: Where messages wait if the broker lacks the plugin: a queue and an exchange each.
_WAITING = (
    *(f"demo.delay_exchange.exchange.delay.{delay}" for delay in ("500ms", "1s", "4s")),
    "demo.delayed_logs.exchange.delay.1s",
)


def play(stage: Stage) -> None:
    """Whatever was sent first, what is due first comes first."""
    sender, receiver = stage.terminals("sender", "receiver")

    receiver.start(_RECEIVE)
    sender.run(f"{_SEND} --delay 4s 'sent first, in four seconds'")
    lines = ['{"body": "sent second, in a second", "delay": "1s"}', '{"body": "sent third, in half", "delay": "500ms"}']
    sender.run(f"printf '%s\\n' '{lines[0]}' '{lines[1]}' | {_SEND} --json")
    receiver.wait_for("late", 3)
    receiver.interrupt()
    stage.expect(
        "they came in the order of their times, though the longest delay was sent first",
        [line.split(" late: ")[1] for line in receiver.lines if " late: " in line],
        ["sent third, in half", "sent second, in a second", "sent first, in four seconds"],
    )
    stage.expect("none came early", [line for line in receiver.lines if "-" in line.split(" late: ")[0]], [])

    stage.screen.blank()
    receiver.start(f"{_LOGS} 'kern.*' -F '%r:%b'")
    sender.run(f"{_EMIT} cron.info 'Nobody has asked for this.' --delay 1s")
    sender.run(f"{_EMIT} kern.info 'Any command can delay.' --delay 1s")
    receiver.wait_for("Any command", 1)
    receiver.interrupt()
    stage.expect(
        "a delayed log is routed by its key, when it is due",
        [line for line in receiver.lines if ":" in line and "[*]" not in line],
        ["kern.info:Any command can delay."],
    )


demonstration = Demonstration(
    "Delayed messages",
    "A message waits at the broker until it is due: in an exchange of the delayed message plugin, or in queues.",
    play,
    queues=("demo.delay_queue", "demo.delay_exchange.nowhere", *_WAITING),
    exchanges=(
        "demo.delay_exchange",
        "demo.delay_exchange.due",
        "demo.delayed_logs",
        "demo.delayed_logs.delayed",
        *_WAITING,
    ),
)
