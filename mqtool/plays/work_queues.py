"""Tutorial 2."""

from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import wait_until

_QUICK = ["a", "b", "c", "d", "e"]
#: Two dots are two seconds of work: enough for another worker to do all the quick tasks.
_LONG = "long.."


def play(stage: Stage) -> None:
    """Fair dispatch, then round-robin, then the classic mistake."""
    boss, one, two = stage.terminals("boss", "worker 1", "worker 2")
    _fair_dispatch(stage, boss, [one, two])
    _round_robin(stage, boss, [one, two])
    _forgotten_acknowledgement(stage, boss, one, two)


def _fair_dispatch(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.say(
        "Two workers share a queue. The boss sends a long task (two dots: two seconds of work) and five quick ones. "
        "With prefetch 1, a worker gets its next task only when it has finished the last one."
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.queue('task_queue')}")
    stage.expect(
        f"fair dispatch: {busy.name} did the long task, {other.name} the five quick ones",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG], _QUICK),
    )


def _round_robin(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.say(
        "The same with no limit, --prefetch 0: the broker deals out all tasks in turn at once, however long each takes."
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.queue('task_queue')} --prefetch 0")
    stage.expect(
        f"round-robin: two quick tasks waited behind the long one while {other.name} was idle",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG, "b", "d"], ["a", "c", "e"]),
    )


def _share(stage: Stage, boss: Terminal, workers: list[Terminal], command: str) -> tuple[Terminal, Terminal]:
    """Let two workers share the tasks; return the one that got the long task, and the other."""
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
        "The classic mistake: worker 1 does its tasks but never acknowledges them. To the broker they are not done. "
        "When worker 1 ends, they go to the next worker, marked redelivered."
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
        "nothing was acknowledged: the next worker got all three tasks again, redelivered",
        (one.after("Received "), two.after("Received ")),
        ([f"{task}, redelivered 0" for task in "abc"], [f"{task}, redelivered 1" for task in "abc"]),
    )


def _tasks_of(worker: Terminal) -> list[str]:
    return worker.after("[x] Received ")


PLAY = Play(
    "Work queues",
    "Workers share tasks, and each task is done by one of them. Each dot in a task is a second of work.",
    play,
    queues=("task_queue",),
)
