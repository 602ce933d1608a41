"""Messages that arrive later than they are sent."""

from mqtool.plays.stage import Play, Stage

_LONG, _SHORT = 5, 2


def play(stage: Stage) -> None:
    """What is sent first arrives last."""
    sender, receiver = stage.terminals("sender", "receiver")
    exchange = stage.exchange("delay_exchange")
    send = f"mqtool send-delayed{exchange}"
    if stage.place.apart:
        send += f" -r {stage.name('delay_queue')}"

    stage.say("A receiver waits for messages that come when their time has come.")
    receiver.start(f"mqtool receive-delayed{exchange}{stage.queue('delay_queue')}")
    stage.say(
        f"The first message shall arrive in {_LONG} seconds, the second in {_SHORT}. The sender is done at once: the "
        "broker keeps them until they are due."
    )
    sender.run(f"{send} --delay {_LONG}s 'Wake up!'")
    sender.run(f"{send} --delay {_SHORT}s 'Tea is ready.'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    stage.expect(
        "the message that was sent second arrived first",
        [line.partition(" ms late: ")[2] for line in receiver.after("[x] Received, ")],
        ["Tea is ready.", "Wake up!"],
    )


PLAY = Play(
    "Delayed messages",
    "The broker holds a message back, and delivers it when it is due.",
    play,
    queues=("delay_queue", *(f"delay_exchange.exchange.delay.{seconds}s" for seconds in (_LONG, _SHORT))),
    exchanges=("delay_exchange", *(f"delay_exchange.exchange.delay.{seconds}s" for seconds in (_LONG, _SHORT))),
)
