"""Workers that run a program for each message, and what can go wrong with them.

    send ──> [drill] ──> worker --exec … --deduplicate ──> done
                │  ^
                v  └── again later ──> [drill.dlq]
             killed

A killed worker has not acknowledged its messages: another worker gets them, marked redelivered. A message that always
fails becomes a dead letter with the reason. A message published twice is handled once.
"""

import shlex

from mqtool.amqp import Connection, parse_addresses
from mqtool.drills.scene import PATIENCE, Scene, Verdict, message, number_of
from mqtool.errors import ExitCode
from mqtool.inspection.listing import counted
from mqtool.stage.stage import lines_of
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import wait_until
from mqtool.work import peeking
from mqtool.work.history import death_of
from mqtool.work.retry import dead_letter_queue

MESSAGES = 200
#: The effect of a message: a line with its ID, and whether it was redelivered.
_EFFECT = 'echo "$MQ_MESSAGE_ID $MQ_REDELIVERED" >> effects'
_RETRIES = 3
_AT_ONCE = 4


def kill_worker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """kill -9 a worker while its programs run; another one takes over."""
    scene.say(
        f"{count} messages wait for workers that run a program for each, {_AT_ONCE} at once. Worker 1 is killed in the "
        "middle of it. It has not acknowledged what it was doing. Watch worker 2 get that again, marked redelivered, "
        "and the rest."
    )
    sender, first, second = scene.terminals("sender", "worker 1", "worker 2")
    confirmed = scene.send(sender, (message(number) for number in range(count)))
    # After a quarter of the messages, its programs run for minutes, so that it is killed in the middle of them.
    long = f"[ ${{MQ_MESSAGE_ID#m-}} -lt {count // 4} ] || {{ touch running-$MQ_MESSAGE_ID; exec sleep 600; }}; "
    first.start(_worker(scene, long + _EFFECT))
    wait_until(
        lambda: len(list(scene.directory.glob("running-*"))) == _AT_ONCE or first.has_ended, "programs to run", PATIENCE
    )
    scene.say(f"Now worker 1 is killed (kill -9) while it runs {_AT_ONCE} programs, and worker 2 starts.")
    first.kill()
    second.start(_worker(scene, _EFFECT))
    second.wait(PATIENCE)
    return _verdict(scene, count, confirmed, second)


def poison(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Two messages cannot be handled: one always fails, one is bad data. They do not hold up the others."""
    scene.say(
        f"Two of {count} messages cannot be handled: the program always fails for one, and calls the other bad data "
        f"(exit status 65). Watch the worker retry the first {_RETRIES} times, and the second not at all. Both become "
        "dead letters, and the others do not wait for them."
    )
    sender, worker = scene.terminals("sender", "worker")
    bodies = {count // 3: "always fails", count // 2: "bad data"}
    confirmed = scene.send(sender, (message(number, bodies.get(number)) for number in range(count)))
    program = 'case "$(cat)" in "always fails") echo I cannot >&2; exit 1;; "bad data") exit 65;; esac; ' + _EFFECT
    worker.start(_worker(scene, program, "--retries", str(_RETRIES), "--backoff", "100ms"))
    worker.wait(PATIENCE, ExitCode.SOME_FAILED)
    with Connection(parse_addresses(scene.url)) as connection:
        queue = dead_letter_queue(scene.queue).name
        dead = [(letter.message_id, death_of(letter)) for letter in peeking.peek(connection.channel(), queue)]
    why = [f"{name} {death.reason} after {counted(death.attempts, 'attempt')}" for name, death in dead]
    scene.say(f"The dead letters say why: {', '.join(why)}.")
    return _verdict(scene, count, confirmed, worker, dead=len(dead))


def duplicate(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Every tenth message is published twice, as after a lost confirm; each takes effect once."""
    scene.say(
        f"Every tenth of {count} messages is published twice, as by a sender that never got its confirm. Watch the "
        "worker with --deduplicate recognise each copy by its message ID, and not run its program again."
    )
    sender, worker = scene.terminals("sender", "worker")
    messages = [message(number) for number in range(count)]
    confirmed = scene.send(sender, messages + messages[::10])
    worker.start(_worker(scene, _EFFECT))
    worker.wait(PATIENCE)
    return _verdict(scene, count, confirmed, worker)


def _worker(scene: Scene, program: str, *options: str) -> str:
    """The command of a worker that ends when no more messages arrive."""
    return shlex.join([
        "mqtool", "worker", "-q", scene.queue, "--concurrency", str(_AT_ONCE),
        "--deduplicate", "--dedup-store", "handled.sqlite", "--idle-timeout", "3s",
        "--shell", "--exec", program, *options,
    ])  # fmt: skip


def _verdict(scene: Scene, count: int, confirmed: int, worker: Terminal, *, dead: int = 0) -> Verdict:
    effects = [line.split() for line in lines_of(scene.directory / "effects")]
    done = {message_id for message_id, _ in effects}
    return Verdict(
        sent=count,
        confirmed=confirmed,
        done=len(done),
        redelivered=sum(redelivered == "1" for _, redelivered in effects),
        suppressed=number_of(worker, "suppressed"),
        twice=len(effects) - len(done),
        dead=dead,
    )
