"""Tutorial 2."""

from demo.stage import Demonstration, Stage
from demo.terminal import Terminal
from demo.waiting import wait_until

_QUICK = ["a", "b", "c", "d", "e"]
#: Two dots are two seconds of work: time enough for another worker to do all the quick ones.
_LONG = "long.."
_TASKS = f"printf '%s\\n' {' '.join([_LONG, *_QUICK])} | mqtool new-task -l -q demo.tasks"


def play(stage: Stage) -> None:
    """Fair dispatch, then round-robin, then the classic mistake."""
    boss, one, two = stage.terminals("boss", "worker 1", "worker 2")
    _fair_dispatch(stage, boss, [one, two])
    _round_robin(stage, boss, [one, two])
    _forgotten_acknowledgement(stage, boss, one, two)


def _fair_dispatch(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    busy, other = _share(boss, workers, "mqtool worker -q demo.tasks")
    stage.expect(
        f"fair dispatch: {busy.name} did the long task, {other.name} the five quick ones",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG], _QUICK),
    )


def _round_robin(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.screen.blank()
    busy, other = _share(boss, workers, "mqtool worker -q demo.tasks --prefetch 0")
    stage.expect(
        f"round-robin: two quick tasks waited behind the long one, and {other.name} idled",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG, "b", "d"], ["a", "c", "e"]),
    )


def _share(boss: Terminal, workers: list[Terminal], command: str) -> tuple[Terminal, Terminal]:
    """Have two workers share the tasks; return the one that got the long task, and the other."""
    for worker in workers:
        worker.start(command)
    boss.run(_TASKS)
    wait_until(
        lambda: sum(worker.count("[x] Done") for worker in workers) == 1 + len(_QUICK),
        lambda: f"the workers to do {1 + len(_QUICK)} tasks; they did {[_tasks_of(worker) for worker in workers]}",
    )
    for worker in workers:
        worker.interrupt()
    one, two = workers
    return (one, two) if _LONG in _tasks_of(one) else (two, one)


def _forgotten_acknowledgement(stage: Stage, boss: Terminal, one: Terminal, two: Terminal) -> None:
    stage.screen.blank()
    shown = "-F 'Received %b, redelivered %R'"
    one.start(f"mqtool worker -q demo.tasks --prefetch 0 --forget-ack {shown}")
    boss.run("printf '%s\\n' a b c | mqtool new-task -l -q demo.tasks")
    one.wait_for("[x] Done", 3)
    one.interrupt()
    two.start(f"mqtool worker -q demo.tasks {shown}")
    two.wait_for("[x] Done", 3)
    two.interrupt()
    stage.expect(
        "none was acknowledged: the next worker got all three again, redelivered",
        (one.after("Received "), two.after("Received ")),
        ([f"{task}, redelivered 0" for task in "abc"], [f"{task}, redelivered 1" for task in "abc"]),
    )


def _tasks_of(worker: Terminal) -> list[str]:
    return worker.after("[x] Received ")


demonstration = Demonstration(
    "Work queues",
    "Tasks are shared among workers, and each is done by one of them; a task's dots are its seconds of work.",
    play,
    queues=("demo.tasks",),
)
