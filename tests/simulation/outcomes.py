"""The outcome of a simulation, in a form that can be passed between processes."""

import time
from typing import NamedTuple


class Outcome(NamedTuple):
    """The outcome of the simulation that a seed determines.

    Attributes:
        virtual: how long the simulation took by its own clock, in seconds.
        cpu: the CPU time that the simulation took, in seconds.
        digest: the digest of the simulation's history.
        violation: the rule that was broken, and how; "" if none was.
    """

    virtual: float
    cpu: float
    digest: str
    violation: str


def outcome_of(seed: int) -> Outcome:
    """Draw and run the simulation of a seed."""
    # Imported here, because a mutation must be planted first.
    from tests.simulation.plan import draw
    from tests.simulation.world import simulate

    started = time.process_time()
    result = simulate(draw(seed))
    violation = ": ".join(map(str, result.violation.args)) if result.violation else ""
    return Outcome(result.seconds, time.process_time() - started, result.digest, violation)
