"""The drills: each one causes a failure while a receiver or workers consume messages from a queue.

Messages flow from a sender to a receiver while the broker restarts, a node is killed, or connections are cut:

    send ──> [drill] ──> receive
         ^           ^
         └─── cut ───┘

The sender republishes unconfirmed messages with the same message ID. The broker redelivers unacknowledged messages to
the receiver. So no message is lost, but a message may arrive twice. Its ID shows that the second one is a duplicate.

Workers run a program for each message. One of them is killed, a message always fails, or messages are published twice:

    send ──> [drill] ──> worker --exec … --deduplicate ──> done
                │  ^
                v  └── retries ──> [drill.dlq]
             killed

The broker redelivers the unacknowledged messages of a killed worker to another worker. A message that always fails is
dead-lettered. A message published twice is handled once.
"""

import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

from mqtool.amqp import Connection, parse_addresses
from mqtool.drills.scene import PATIENCE, Arrivals, DrillMessages, DrillScene, Proxy, Verdict, number_of
from mqtool.errors import ExitCode
from mqtool.spelling import counted
from mqtool.stage.stage import lines_of
from mqtool.stage.terminal import Terminal, wait_until
from mqtool.work import peeking
from mqtool.work.history import death_of
from mqtool.work.retry_or_dead_letter import dead_letter_queue

#: Default number of messages in a drill with a flow of messages.
STREAM_MESSAGES = 10_000
#: Default for kill-node. Sending this many messages takes several seconds, long enough to measure the pause.
NODE_MESSAGES = 40_000
#: The explanation shown in each drill with a flow of messages.
_AGAIN = (
    "The sender republishes every unconfirmed message, and the broker redelivers every unacknowledged one. Some "
    "messages may arrive twice, but none should be lost."
)


def restart_broker(scene: DrillScene, count: int = STREAM_MESSAGES) -> Verdict:
    def restart() -> None:
        scene.say("Now the broker restarts. It keeps the messages that it has stored.")
        scene.restart_broker()

    scene.say(
        f"{count:,} messages flow from a sender to a receiver while the broker restarts. Watch both programs lose "
        f"their connections and reconnect. {_AGAIN}"
    )
    return _flow(scene, scene.url, count, {1: restart})


def kill_node(scene: DrillScene, count: int = NODE_MESSAGES) -> Verdict:
    """Kill the node (kill -9) that hosts the queue's leader and both clients' connections. Restart the node later.

    The other nodes elect a new leader, and both clients reconnect to another node.
    """

    def kill() -> None:
        scene.say("Now node 1 is killed (kill -9).")
        scene.kill_node()

    def revive() -> None:
        scene.say("Node 1 starts again.")
        scene.revive_nodes()

    scene.say(
        f"{count:,} messages flow from a sender to a receiver. Node 1 hosts the queue's leader, and both programs are "
        "connected to it. Then node 1 is killed. Watch both programs reconnect to another node. The longest pause "
        f"between two received messages shows how long it takes to elect a new leader and to reconnect. {_AGAIN}"
    )
    return _flow(scene, scene.url, count, {1: kill, 3: revive})


def drop_connection(scene: DrillScene, count: int = STREAM_MESSAGES) -> Verdict:
    """Cut the sender's and the receiver's connections three times."""
    scene.say(
        f"{count:,} messages flow from a sender to a receiver. The connections of both programs are cut three times. "
        f"Watch the programs reconnect. {_AGAIN}"
    )
    with Proxy(scene.address.port, scene.address.host) as proxy:

        def cut(number: int) -> None:
            scene.say(f"Cut {number} of 3: a proxy cuts the connections of both programs.")
            proxy.cut()

        return _flow(scene, scene.through(proxy), count, {number: partial(cut, number) for number in (1, 2, 3)})


def _flow(scene: DrillScene, url: str, count: int, breaks: dict[int, Callable[[], None]]) -> Verdict:
    """Send and receive messages in four parts, numbered from 0. Before sending part N, call breaks[N] if it exists.

    Before each call, wait until more than half of the messages sent so far have arrived, and both programs have
    reported that they have reconnected after the previous call.
    """
    messages = DrillMessages(count)
    arrivals = Arrivals(scene.directory / "got", messages)
    receiver, sender = scene.terminals("receiver", "sender", url=url)
    receiver.start(f"mqtool receive --declare --json -q {scene.queue} > got")
    sender.feed(scene.sending)
    broken = 0
    for quarter in range(4):
        first, last = count * quarter // 4, count * (quarter + 1) // 4
        if quarter in breaks:
            # By now, some messages are in the queue, some are unconfirmed, and some are unacknowledged.
            wait_until(lambda half=first // 2: arrivals.count() > half, "messages to arrive", PATIENCE)  # type: ignore[misc]
            for terminal in (receiver, sender):
                terminal.wait_for("connected again", broken)
            breaks[quarter]()
            broken += 1
        sender.write("\n".join(map(messages.line, range(first, last))))
    sender.finish(PATIENCE)
    scene.wait_until_still(lambda: len(arrivals.ids) == count, arrivals.count)
    receiver.interrupt()
    arrivals.count()
    deliveries, done = arrivals.deliveries, len(arrivals.ids)
    return Verdict(
        sent=count,
        confirmed=number_of(sender, "confirmed"),
        done=done,
        redelivered=sum(delivery["redelivered"] for delivery in deliveries),
        suppressed=len(deliveries) - done,
        pause=_longest_pause(deliveries),
        foreign=arrivals.foreign,
    )


def _longest_pause(deliveries: list[dict[str, Any]]) -> float:
    """Return the longest time between two consecutive deliveries, in seconds."""
    times = [datetime.fromisoformat(delivery["timestamp"]) for delivery in deliveries]
    return max(((later - earlier).total_seconds() for earlier, later in pairwise(times)), default=0.0)


WORKER_MESSAGES = 200
#: A shell command that records a handled message: it appends a line with 1 or 0 (redelivered or not) and the ID.
_EFFECT = 'printf "%s %s\\n" "$MQ_REDELIVERED" "$MQ_MESSAGE_ID" >> effects'
_RETRIES = 3
_AT_ONCE = 4


def kill_worker(scene: DrillScene, count: int = WORKER_MESSAGES) -> Verdict:
    """Kill a worker (kill -9) while its programs run. Another worker receives their messages, and then the rest."""
    scene.say(
        f"{count} messages are sent to a queue. Worker 1 runs a program for each message, up to {_AT_ONCE} at the same "
        "time. It is killed while its programs run, before it has acknowledged their messages. Then worker 2 starts. "
        "Watch worker 2 receive these messages, marked as redelivered, and then the remaining ones."
    )
    sender, first, second = scene.terminals("sender", "worker 1", "worker 2")
    messages = DrillMessages(count)
    confirmed = scene.send(sender, map(messages.line, range(count)))
    # After a quarter of the messages, the worker's programs run for minutes, so they still run when it is killed.
    (scene.directory / "long").write_text("".join(f"{each}\n" for each in messages.ids[count // 4 :]))
    long = 'if grep -qxFe "$MQ_MESSAGE_ID" long; then touch "running-$MQ_MESSAGE_ID"; exec sleep 600; fi; '
    first.start(_worker(scene, long + _EFFECT))
    wait_until(
        lambda: len(list(scene.directory.glob("running-*"))) == _AT_ONCE or first.has_ended, "programs to run", PATIENCE
    )
    scene.say(f"Now worker 1 is killed (kill -9) while it runs {_AT_ONCE} programs, and worker 2 starts.")
    first.kill()
    second.start(_worker(scene, _EFFECT))
    _finish(scene, messages, second)
    return _verdict(scene, messages, confirmed, second)


def poison(scene: DrillScene, count: int = WORKER_MESSAGES) -> Verdict:
    """Publish two messages that cannot be handled: one always fails, one is bad data. Neither delays other messages."""
    scene.say(
        f"A worker runs a program for each of {count} messages. For one message, the program always fails; for another "
        "message, the program exits with status 65 (bad data). Watch the worker retry the failing message "
        f"{_RETRIES} times, but not the one with bad data. Both of these messages become dead letters. The other "
        "messages do not wait for them."
    )
    sender, worker = scene.terminals("sender", "worker")
    messages, bodies = DrillMessages(count), {count // 3: "always fails", count // 2: "bad data"}
    confirmed = scene.send(sender, (messages.line(number, bodies.get(number)) for number in range(count)))
    program = (
        'case "$(cat)" in "always fails") echo cannot handle it >&2; exit 1;; "bad data") exit 65;; esac; ' + _EFFECT
    )
    worker.start(_worker(scene, program, "--retries", str(_RETRIES), "--backoff", "100ms"))
    _finish(scene, messages, worker, ExitCode.SOME_FAILED)
    with Connection(parse_addresses(scene.url)) as connection:
        queue = dead_letter_queue(scene.queue).name
        letters = list(peeking.peek(connection.channel(), queue))
    deaths = {letter.message_id: death_of(letter) for letter in letters if letter.message_id in messages}
    why = [
        f"{name.rpartition('-')[0]}: {death.reason} after {counted(death.attempts, 'attempt')}"
        for name, death in deaths.items()
        if name
    ]
    scene.say(f"Reasons for dead-lettering: {'; '.join(why)}.")
    verdict = _verdict(scene, messages, confirmed, worker, dead=len(deaths))
    return replace(verdict, foreign=verdict.foreign + sum(letter.message_id not in messages for letter in letters))


def duplicate(scene: DrillScene, count: int = WORKER_MESSAGES) -> Verdict:
    """Publish every tenth message twice, as if its confirm had been lost; the worker handles each message once."""
    scene.say(
        f"Every tenth of {count} messages is published twice, as if the sender had not received the confirm. A "
        "worker with --deduplicate runs a program for each message. Watch the worker recognise each duplicate by its "
        "message ID, and run the program only for the original."
    )
    sender, worker = scene.terminals("sender", "worker")
    messages = DrillMessages(count)
    confirmed = scene.send(sender, map(messages.line, [*range(count), *range(0, count, 10)]))
    worker.start(_worker(scene, _EFFECT))
    _finish(scene, messages, worker)
    return _verdict(scene, messages, confirmed, worker)


def _worker(scene: DrillScene, program: str, *options: str) -> str:
    """Return the command line of a worker that exits when no message has arrived for 3 s."""
    return shlex.join([
        "mqtool", "worker", "--declare", "-q", scene.queue, "--concurrency", str(_AT_ONCE),
        "--deduplicate", "--dedup-store", "handled.sqlite", "--idle-timeout", "3s",
        "--shell", "--exec", program, *options,
    ])  # fmt: skip


def _effects(scene: DrillScene, messages: DrillMessages) -> tuple[list[tuple[str, bool]], int]:
    """Return which of the drill's messages the workers have handled, and how many other messages they have handled.

    A message handled twice is listed twice. Each entry is a pair: the message's ID, and True if it was redelivered.
    """
    lines = [line.partition(" ") for line in lines_of(scene.directory / "effects")]
    own = [(message_id, redelivered == "1") for redelivered, _, message_id in lines if message_id in messages]
    return own, len(lines) - len(own)


def _finish(scene: DrillScene, messages: DrillMessages, worker: Terminal, code: int = 0) -> None:
    """Wait until a worker ends because its queue is empty.

    If other clients keep publishing to the queue, interrupt the worker once it handles no more of the drill's messages.
    """
    scene.wait_until_still(lambda: worker.has_ended, lambda: len(_effects(scene, messages)[0]))
    if worker.has_ended:
        worker.wait(PATIENCE, code)
    else:
        worker.signal(signal.SIGINT)
        worker.end()


def _verdict(scene: DrillScene, messages: DrillMessages, confirmed: int, worker: Terminal, *, dead: int = 0) -> Verdict:
    effects, foreign = _effects(scene, messages)
    done = {message_id for message_id, _ in effects}
    return Verdict(
        sent=len(messages.ids),
        confirmed=confirmed,
        done=len(done),
        redelivered=sum(redelivered for _, redelivered in effects),
        suppressed=number_of(worker, "suppressed"),
        twice=len(effects) - len(done),
        dead=dead,
        foreign=foreign,
    )
