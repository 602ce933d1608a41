"""Shortens the plan of a failing seed, as long as it breaks the same rule."""

from collections.abc import Iterator

from tests.simulation.plan import Plan
from tests.simulation.world import Result, simulate

_MOST_RUNS = 400


def shrink(plan: Plan, result: Result) -> tuple[Plan, Result]:
    """Remove clients, then steps of clients, until all that are left are needed to break the rule."""
    assert result.violation is not None
    rule, runs = result.violation.rule, 0
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for shorter in _shorter(plan):
            runs += 1
            if runs > _MOST_RUNS:
                return plan, result
            tried = simulate(shorter)
            if tried.violation is not None and tried.violation.rule == rule:
                plan, result, is_shorter = shorter, tried, True
                break
    return plan, result


def _shorter(plan: Plan) -> Iterator[Plan]:
    """Yield shorter plans: without one client, without half of a client's steps, …, without one step."""
    for index in range(len(plan.actors)):
        yield plan.without_actor(index)
    for index, actor in enumerate(plan.actors):
        count = len(actor.steps) // 2
        while count:
            for start in range(0, len(actor.steps), count):
                if count < len(actor.steps):
                    yield plan.without_steps(index, start, count)
            count //= 2


def story(plan: Plan, result: Result) -> str:
    """Return the plan and its history as readable text."""
    events = [f"{at:9.3f}  {who:20} {what}" for at, who, what in result.history]
    return "\n".join([str(plan), "", *events])
