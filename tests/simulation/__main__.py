"""`make simulate SEEDS=N`: run simulations, and print the shortest history of the first that breaks a rule.

`--mutation NAME` plants a defect first: see mutations.py.
"""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context

from tests.simulation.mutations import MUTATIONS, plant
from tests.simulation.outcomes import Outcome, outcome_of


def _print_history(seed: int, is_shrunk: bool) -> int:
    """Print the history of a seed. Return 1 if it breaks a rule."""
    # Imported here, because a mutation must be planted first.
    from tests.simulation.plan import draw
    from tests.simulation.shrinking import shrink, story
    from tests.simulation.world import simulate

    plan = draw(seed)
    result = simulate(plan)
    if is_shrunk:
        plan, result = shrink(plan, result)
    print(story(plan, result))
    return 1 if result.violation else 0


def main() -> int:
    """Run the seeds. Return 1 if one of them breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run only this seed, and print its whole history")
    parser.add_argument("--processes", type=int, default=1, help="number of processes that run seeds in parallel")
    parser.add_argument("--mutation", choices=[each.name for each in MUTATIONS], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="stop at the first failing seed, and print only its rule")
    parser.add_argument("--digests", action="store_true", help="print the digest of each seed's history")
    given = parser.parse_args()
    if given.mutation:
        plant(given.mutation)
    if given.seed is not None:
        return _print_history(given.seed, is_shrunk=False)
    seeds = range(given.first, given.first + given.seeds)
    hours = seconds = 0.0
    broken: list[int] = []
    with ExitStack() as stack:
        outcomes: Iterator[Outcome] = map(outcome_of, seeds)
        if given.processes > 1:
            pool = ProcessPoolExecutor(
                given.processes,
                mp_context=get_context("spawn"),
                initializer=partial(plant, given.mutation) if given.mutation else None,
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            outcomes = pool.map(outcome_of, seeds, chunksize=20)
        for seed, outcome in zip(seeds, outcomes, strict=True):
            hours += outcome.virtual / 3600
            seconds += outcome.cpu
            if given.digests:
                print(outcome.digest)
            elif outcome.violation:
                print(f"seed {seed}: {outcome.violation}", flush=True)
                broken.append(seed)
                if given.quick:
                    return 1
            if seed % 10_000 == 9_999 and not given.digests:
                print(f"up to seed {seed}, {len(broken)} have broken a rule", flush=True)
    if not given.digests:
        print(
            f"{given.seeds} seeds from {given.first}: {hours:.1f} virtual hours in {seconds:.0f} s of CPU, "
            f"{given.seeds / max(seconds, 0.001):.1f} seeds per second"
        )
    return _print_history(broken[0], is_shrunk=True) if broken else 0


if __name__ == "__main__":
    sys.exit(main())
