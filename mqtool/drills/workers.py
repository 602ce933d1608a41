"""Workers that run a program for each message, and what may happen to them.

    send ──> [drill] ──> worker --exec … --deduplicate ──> done
                │  ^
                v  └── again later ──> [drill.dlq]
             killed

A worker that is killed had not acknowledged what it was doing: another one does it, and sees that it is redelivered. A
message that always fails is tried so often, and then put aside with the reason. One that was published twice is done
once.
"""

from pathlib import Path

from mqtool.amqp import Connection, parse_addresses
from mqtool.drills.scene import Command, Scene, Verdict, lines_of, message
from mqtool.work import dead_letters
from mqtool.work.retry import dead_letter_queue

MESSAGES = 200
#: The effect of a message: a line with its id, and whether it was redelivered.
_EFFECT = 'echo "$MQ_MESSAGE_ID $MQ_REDELIVERED" >> effects'
_RETRIES = 3
_AT_ONCE = 4


def kill_worker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """kill -9 a worker while its programs run; another one takes over."""
    confirmed = scene.send(message(number) for number in range(count))
    effects = scene.directory / "effects"
    # From some message on, its programs take for ever: at its death it is in the middle of each.
    long = f"[ ${{MQ_MESSAGE_ID#m-}} -lt {count // 4} ] || {{ touch running-$MQ_MESSAGE_ID; exec sleep 600; }}; "
    first = _worker(scene, "worker 1", long + _EFFECT)
    scene.wait_until(
        lambda: len(list(scene.directory.glob("running-*"))) == _AT_ONCE or first.has_ended, "programs in mid-run"
    )
    scene.say(f"killing worker 1 (kill -9), {_AT_ONCE} programs in mid-run …")
    first.kill()
    second = _worker(scene, "worker 2", _EFFECT)
    second.wait()
    return _verdict(scene, count, confirmed, effects, second)


def poison(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Two of the messages cannot be done: one always fails, one is bad data. The others are not held up."""
    bodies = {count // 3: "always fails", count // 2: "bad data"}
    confirmed = scene.send(message(number, bodies.get(number)) for number in range(count))
    program = 'case "$(cat)" in "always fails") echo I cannot >&2; exit 1;; "bad data") exit 65;; esac; ' + _EFFECT
    worker = _worker(scene, "worker", program, "--retries", str(_RETRIES), "--backoff", "100ms")
    worker.wait()
    with Connection(parse_addresses(scene.url)) as connection:
        queue = dead_letter_queue(scene.queue).name
        dead = list(dead_letters.letters(connection.channel(), queue))
    for letter in dead:
        scene.say(f"dead: {letter.message_id}: {letter.death.reason} after {letter.death.attempts} attempts")
    return _verdict(scene, count, confirmed, scene.directory / "effects", worker, dead=len(dead))


def duplicate(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Every tenth message is published twice, as by a publisher that saw no confirm; each has its effect once."""
    messages = [message(number) for number in range(count)]
    confirmed = scene.send(messages + messages[::10])
    worker = _worker(scene, "worker", _EFFECT)
    worker.wait()
    return _verdict(scene, count, confirmed, scene.directory / "effects", worker)


def _worker(scene: Scene, name: str, program: str, *options: str) -> Command:
    """A worker that ends when nothing comes any more."""
    return scene.start_consumer(
        name, "worker", "-q", scene.queue, "--concurrency", str(_AT_ONCE),
        "--deduplicate", "--dedup-store", "handled.sqlite", "--idle-timeout", "3s",
        "--shell", "--exec", program, *options,
    )  # fmt: skip


def _verdict(scene: Scene, count: int, confirmed: int, effects: Path, *workers: Command, dead: int = 0) -> Verdict:
    lines = [line.split() for line in lines_of(effects)]
    done = {message_id for message_id, _ in lines}
    return Verdict(
        sent=count,
        confirmed=confirmed,
        done=len(done),
        redelivered=sum(redelivered == "1" for _, redelivered in lines),
        suppressed=scene.suppressed_by(*workers),
        twice=len(lines) - len(done),
        dead=dead,
    )
