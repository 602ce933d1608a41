"""Tutorial 2."""

from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import wait_until

_QUICK = ["a", "b", "c", "d", "e"]
#: Two dots are two seconds of work: time enough for another worker to do all the quick ones.
_LONG = "long.."


def play(stage: Stage) -> None:
    """Fair dispatch, then round-robin, then the classic mistake."""
    boss, one, two = stage.terminals("boss", "worker 1", "worker 2")
    _fair_dispatch(stage, boss, [one, two])
    _round_robin(stage, boss, [one, two])
    _forgotten_acknowledgement(stage, boss, one, two)


def _fair_dispatch(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.say(
        "Two workers share one queue. The boss hands out a long task, whose two dots are two seconds of work, and five "
        "quick ones. With prefetch 1 a worker is given a task only when it has finished the last."
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.queue('task_queue')}")
    stage.expect(
        f"fair dispatch: {busy.name} did the long task, {other.name} the five quick ones",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG], _QUICK),
    )


def _round_robin(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.say(
        "The same without that limit, --prefetch 0: the broker deals all tasks out in turn, at once, however long each "
        "takes."
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.queue('task_queue')} --prefetch 0")
    stage.expect(
        f"round-robin: two quick tasks waited behind the long one, and {other.name} idled",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG, "b", "d"], ["a", "c", "e"]),
    )


def _share(stage: Stage, boss: Terminal, workers: list[Terminal], command: str) -> tuple[Terminal, Terminal]:
    """Have two workers share the tasks; return the one that got the long task, and the other."""
    for worker in workers:
        worker.start(command)
    boss.run(f"printf '%s\\n' {' '.join([_LONG, *_QUICK])} | mqtool new-task -l{stage.queue('task_queue')}")
    wait_until(
        lambda: sum(worker.count("[x] Done") for worker in workers) == 1 + len(_QUICK),
        lambda: f"the workers to do {1 + len(_QUICK)} tasks; they did {[_tasks_of(worker) for worker in workers]}",
    )
    for worker in workers:
        worker.interrupt()
    one, two = workers
    return (one, two) if _LONG in _tasks_of(one) else (two, one)


def _forgotten_acknowledgement(stage: Stage, boss: Terminal, one: Terminal, two: Terminal) -> None:
    stage.say(
        "The classic mistake: worker 1 does its tasks and never acknowledges them. To the broker they are not done. "
        "When worker 1 ends, it gives them to the next worker, marked redelivered."
    )
    shown = "-F 'Received %b, redelivered %R'"
    queue = stage.queue("task_queue")
    one.start(f"mqtool worker{queue} --prefetch 0 --forget-ack {shown}")
    boss.run(f"printf '%s\\n' a b c | mqtool new-task -l{queue}")
    one.wait_for("[x] Done", 3)
    one.interrupt()
    two.start(f"mqtool worker{queue} {shown}")
    two.wait_for("[x] Done", 3)
    two.interrupt()
    stage.expect(
        "none was acknowledged: the next worker got all three again, redelivered",
        (one.after("Received "), two.after("Received ")),
        ([f"{task}, redelivered 0" for task in "abc"], [f"{task}, redelivered 1" for task in "abc"]),
    )


def _tasks_of(worker: Terminal) -> list[str]:
    return worker.after("[x] Received ")


PLAY = Play(
    "Work queues",
    "Tasks are shared among workers, and each is done by one of them; a task's dots are its seconds of work.",
    play,
    queues=("task_queue",),
)
