"""Workers that run a program for each message, and what may happen to them.

    send ──> [drill] ──> worker --exec … --deduplicate ──> done
                │  ^
                v  └── again later ──> [drill.dlq]
             killed

A worker that is killed had not acknowledged what it was doing: another one does it, and sees that it is redelivered. A
message that always fails becomes a dead letter with the reason. One that was published twice is done once.
"""

from mqtool.amqp import Connection, parse_addresses
from mqtool.drills.scene import PATIENCE, Scene, Verdict, command, lines_of, message, suppressed_by
from mqtool.errors import ExitCode
from mqtool.inspection.listing import counted
from mqtool.stage.terminal import Terminal
from mqtool.work import dead_letters
from mqtool.work.retry import dead_letter_queue

MESSAGES = 200
#: The effect of a message: a line with its id, and whether it was redelivered.
_EFFECT = 'echo "$MQ_MESSAGE_ID $MQ_REDELIVERED" >> effects'
_RETRIES = 3
_AT_ONCE = 4


def kill_worker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """kill -9 a worker while its programs run; another one takes over."""
    sender, first, second = scene.terminals("sender", "worker 1", "worker 2")
    confirmed = scene.send(sender, (message(number) for number in range(count)))
    # From some message on, its programs take for ever: at its death it is in the middle of each.
    long = f"[ ${{MQ_MESSAGE_ID#m-}} -lt {count // 4} ] || {{ touch running-$MQ_MESSAGE_ID; exec sleep 600; }}; "
    first.start(_worker(scene, long + _EFFECT))
    scene.wait_until(
        lambda: len(list(scene.directory.glob("running-*"))) == _AT_ONCE or first.has_ended, "programs in mid-run"
    )
    scene.say(f"killing worker 1 (kill -9), {_AT_ONCE} programs in mid-run …")
    first.kill()
    second.start(_worker(scene, _EFFECT))
    second.wait(PATIENCE)
    return _verdict(scene, count, confirmed, second)


def poison(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Two of the messages cannot be done: one always fails, one is bad data. The others are not held up."""
    sender, worker = scene.terminals("sender", "worker")
    bodies = {count // 3: "always fails", count // 2: "bad data"}
    confirmed = scene.send(sender, (message(number, bodies.get(number)) for number in range(count)))
    program = 'case "$(cat)" in "always fails") echo I cannot >&2; exit 1;; "bad data") exit 65;; esac; ' + _EFFECT
    worker.start(_worker(scene, program, "--retries", str(_RETRIES), "--backoff", "100ms"))
    worker.wait(PATIENCE, ExitCode.SOME_FAILED)
    with Connection(parse_addresses(scene.url)) as connection:
        queue = dead_letter_queue(scene.queue).name
        dead = list(dead_letters.letters(connection.channel(), queue))
    for letter in dead:
        attempts = counted(letter.death.attempts, "attempt")
        scene.say(f"dead: {letter.message_id}: {letter.death.reason} after {attempts}")
    return _verdict(scene, count, confirmed, worker, dead=len(dead))


def duplicate(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Every tenth message is published twice, as by a publisher that saw no confirm; each has its effect once."""
    sender, worker = scene.terminals("sender", "worker")
    messages = [message(number) for number in range(count)]
    confirmed = scene.send(sender, messages + messages[::10])
    worker.start(_worker(scene, _EFFECT))
    worker.wait(PATIENCE)
    return _verdict(scene, count, confirmed, worker)


def _worker(scene: Scene, program: str, *options: str) -> str:
    """A worker that ends when nothing comes any more."""
    return command(
        "mqtool", "worker", "-q", scene.queue, "--concurrency", str(_AT_ONCE),
        "--deduplicate", "--dedup-store", "handled.sqlite", "--idle-timeout", "3s",
        "--shell", "--exec", program, *options,
    )  # fmt: skip


def _verdict(scene: Scene, count: int, confirmed: int, worker: Terminal, *, dead: int = 0) -> Verdict:
    effects = [line.split() for line in lines_of(scene.directory / "effects")]
    done = {message_id for message_id, _ in effects}
    return Verdict(
        sent=count,
        confirmed=confirmed,
        done=len(done),
        redelivered=sum(redelivered == "1" for _, redelivered in effects),
        suppressed=suppressed_by(worker),
        twice=len(effects) - len(done),
        dead=dead,
    )
