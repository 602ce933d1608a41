"""`make simulate SEEDS=N`: run simulations until one breaks a rule, and print its shortest history.

`--mutation NAME` plants a fault first: see mutations.py.
"""

import argparse
import sys
import time

from tests.simulation.mutations import MUTATIONS, plant


def main() -> int:
    """Run the seeds; return 1 if one of them has broken a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run only this seed, and print its whole history")
    parser.add_argument("--mutation", choices=[each.name for each in MUTATIONS])
    parser.add_argument("--quick", action="store_true", help="print the failing seed and its rule only")
    parser.add_argument("--digests", action="store_true", help="print the digest of each seed's history")
    given = parser.parse_args()
    if given.mutation:
        plant(given.mutation)
    # Imported only now: the mutation has to come first.
    from tests.simulation.plan import draw
    from tests.simulation.shrinking import shrink, story
    from tests.simulation.world import simulate

    if given.seed is not None:
        plan = draw(given.seed)
        result = simulate(plan)
        print(story(plan, result))
        return 1 if result.violation else 0
    hours, started = 0.0, time.process_time()
    for seed in range(given.first, given.first + given.seeds):
        plan = draw(seed)
        result = simulate(plan)
        hours += result.seconds / 3600
        if given.digests:
            print(result.digest)
            continue
        if result.violation is not None:
            print(f"seed {seed}: {result.violation.args[0]}: {result.violation.args[1]}", flush=True)
            if not given.quick:
                print(story(*shrink(plan, result)))
            return 1
    if given.digests:
        return 0
    seconds = time.process_time() - started
    print(
        f"{given.seeds} seeds from {given.first}: {hours:.1f} virtual hours in {seconds:.0f} s of CPU, "
        f"{given.seeds / max(seconds, 0.001):.1f} seeds per second"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
