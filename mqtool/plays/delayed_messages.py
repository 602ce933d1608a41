"""Messages that arrive some time after they are sent."""

from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Terminal

_LONG, _SHORT = 4, 2
#: Without the plugin, messages wait in these: a queue and an exchange of each name.
_WAITING = (
    *(f"delay_exchange.exchange.delay.{seconds}s" for seconds in (_LONG, _SHORT)),
    "delayed_logs.exchange.delay.1s.classic",
)


def play(stage: Stage) -> None:
    """Messages arrive in the order in which they are due; any command can delay them."""
    sender, receiver = stage.terminals("sender", "receiver")
    _in_the_order_of_their_times(stage, sender, receiver)
    _any_command(stage, sender, receiver)


def _in_the_order_of_their_times(stage: Stage, sender: Terminal, receiver: Terminal) -> None:
    exchange = stage.exchange("delay_exchange")
    stage.say("Start a receiver. It gets messages when they are due.")
    receiver.start(f"mqtool receive-delayed{exchange}{stage.queue('delay_queue')}")
    stage.say(
        f"The first message is due in {_LONG} seconds, the second in {_SHORT}. Each send command ends at once: the "
        "messages wait in the broker."
    )
    sender.run(f"mqtool send-delayed{exchange} --delay {_LONG}s 'Wake up!'")
    sender.run(f"mqtool send-delayed{exchange} --delay {_SHORT}s 'Tea is ready.'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    received = [line.partition(" ms late: ") for line in receiver.after("[x] Received, ")]
    stage.expect(
        "the message sent second arrived first", [body for _, _, body in received], ["Tea is ready.", "Wake up!"]
    )
    stage.expect("no message came early", [late for late, _, _ in received if late.startswith("-")], [])


def _any_command(stage: Stage, sender: Terminal, receiver: Terminal) -> None:
    logs = stage.name("delayed_logs")
    stage.say("Any command that publishes can delay messages. These logs are routed by key as usual, a second later.")
    receiver.start(f"mqtool receive-log topic -e {logs} 'kern.*'")
    sender.run(f"mqtool emit-log topic -e {logs} --delay 1s cron.info 'Nobody has asked for this.'")
    sender.run(f"mqtool emit-log topic -e {logs} --delay 1s kern.info 'Booted.'")
    receiver.wait_for("[x]", 1)
    receiver.interrupt()
    stage.expect("a delayed log is routed by its key once it is due", receiver.after("[x] "), ["kern.info:Booted."])


PLAY = Play(
    "Delayed messages",
    "The broker holds a message back and delivers it when it is due.",
    play,
    queues=("delay_queue", "delay_exchange.nowhere", *_WAITING),
    exchanges=("delay_exchange", "delay_exchange.due", "delayed_logs", "delayed_logs.delayed", *_WAITING),
)
