"""The embedded broker on a virtual clock, network and disk: see docs/explanation/simulation.md."""

import asyncio
import gc
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from mqtool.broker.embedded.model import ledger
from tests.brokers import ALL_CASES, IN_CI, large
from tests.simulation import actors as roles
from tests.simulation.judge import Judge, Kind, Violation
from tests.simulation.mutations import MUTATIONS, Mutation, planted_in
from tests.simulation.plan import KINDS, Actor, Plan, Step, draw
from tests.simulation.shrinking import shrink, story
from tests.simulation.world import Result, simulate

ROOT = Path(__file__).parents[2]
BROKER = ROOT / "mqtool" / "broker" / "embedded"

#: The suite is spread over processes, which take turns with parts of this many seeds.
_PART = 50 if IN_CI else 30
_SEEDS = 2000 if ALL_CASES else 500 if IN_CI else _PART

#: The first seed that finds a mutation must be below this one.
_MOST_SEEDS = 1000


def run(*options: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("first", range(0, _SEEDS, _PART))
def test_the_embedded_broker_breaks_no_rule_of_the_simulations_model(first: int) -> None:
    """The simulation draws random clients and faults from a seed. Whatever these do, the embedded broker breaks no
    rule of the simulation's model. For example, it loses no confirmed message.
    """
    for seed in range(first, first + _PART):
        plan = draw(seed)
        result = simulate(plan)
        if result.violation is not None:
            pytest.fail(story(*shrink(plan, result)))


def test_a_seed_of_the_simulation_gives_the_same_history_in_every_process() -> None:
    """A seed of the simulation gives the same history (what each client and fault did, and when) in every process.
    Neither Python's hash seed nor the number of the simulation's processes has an effect.
    """
    seeds = 12 if IN_CI else 4
    first = run("--digests", "--seeds", str(seeds), hash_seed="1")
    second = run("--digests", "--seeds", str(seeds), "--processes", "2", hash_seed="2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
    digests = [simulate(draw(seed)).digest for seed in range(seeds)]
    assert first.stdout.split() == digests


def test_a_history_of_the_simulation_does_not_depend_on_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the simulation kills the embedded broker, its history (what each client and fault did, and when) is the same
    whether or not Python collects garbage after the kill.
    """

    class Collector:
        """A role that may collect garbage after the broker was killed and started again."""

        collects = False

        def __init__(self, *_: object) -> None:
            """Accept the arguments that each role is created with."""

        async def perform(self) -> None:
            await asyncio.sleep(3.5)
            if self.collects:
                gc.collect()

    monkeypatch.setattr(roles, "Collector", Collector, raising=False)
    publishes = tuple(Step(4 + number, "publish", {"queue": "q", "count": 5}) for number in range(10))
    actors = (
        Actor(
            "administrator", "Administrator", 1, (Step(1, "list", {"queue": "q"}), Step(2.5, "list", {"queue": "q"}))
        ),
        Actor("faults", "Faults", 1, (Step(1.5, "kill", {"seconds": 0.3}),)),
        Actor("publisher", "Publisher", 1, publishes),
        Actor("collector", "Collector", 1, ()),
    )
    plan = Plan(1, {"q": "classic"}, actors)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        before = simulate(plan).digest
        Collector.collects = True
        assert simulate(plan).digest == before
    finally:
        if was_enabled:
            gc.enable()


def test_a_history_of_the_simulation_does_not_depend_on_the_free_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed of the simulation gives the same history (what each client and fault did, and when) on a machine whose
    disk is nearly full as on other machines.
    """
    before = simulate(draw(11)).digest
    monkeypatch.setattr(ledger, "disk_free", lambda _: 1000)
    assert simulate(draw(11)).digest == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
@pytest.mark.timeout(3600)
@large
def test_the_simulation_finds_each_planted_defect(mutation: Mutation) -> None:
    """If a known defect is planted in the embedded broker's code, the simulation finds this defect with one of its
    first 1,000 seeds.
    """
    found = run("--quick", "--seeds", str(_MOST_SEEDS), "--mutation", mutation.name)
    assert found.returncode == 1, f"not found: {found.stdout}{found.stderr}"
    assert found.stdout.startswith("seed "), found.stdout + found.stderr


def test_each_known_defect_can_still_be_planted() -> None:
    """To prove that the simulation finds defects, tests plant known defects in the embedded broker's code. Each
    defect replaces a piece of code that occurs exactly once in its file. With the defect, the file is still valid
    Python.
    """
    assert len(MUTATIONS) >= 30
    for mutation in MUTATIONS:
        source = (BROKER / mutation.path).read_text()
        compile(planted_in(source, mutation), mutation.path, "exec")


def test_a_sender_beyond_its_credit_is_detached() -> None:
    """While the embedded broker cannot write to its disk, it grants no credit. If an AMQP 1.0 sender sends a message
    beyond its credit, the broker detaches the link with transfer-limit-exceeded.
    """
    actors = (
        Actor("faults", "Faults", 1, (Step(1, "eio", {"seconds": 30}),)),
        Actor("sender", "Sender10", 1, (Step(2, "overdraw", {"queue": "q"}),)),
    )
    result = simulate(Plan(1, {"q": "classic"}, actors, like="4.0"))
    assert result.violation is None
    assert "ended by the broker: amqp:link:transfer-limit-exceeded" in [what for _, _, what in result.history]


def test_the_management_api_refuses_changes_while_the_disk_is_full() -> None:
    """While the embedded broker's disk is full, its management API responds with status 503 to requests that change
    policies. Once the disk has space again, such requests succeed.
    """
    queues = {f"{number}-{'x' * 100}": "classic" for number in range(20)}
    limits = tuple(Step(2, "limit", {"queue": name}) for name in queues)
    actors = (
        Actor("administrator", "Administrator", 1, limits),
        Actor("faults", "Faults", 1, (Step(1, "full", {"seconds": 10}),)),
    )
    result = simulate(Plan(1, queues, actors))
    assert result.violation is None
    answers = [what for _, _, what in result.history if what.startswith("PUT /")]
    assert any(each.endswith(": 503") for each in answers), answers
    assert answers[-1].endswith(": 201")


@pytest.mark.parametrize(
    "killed_after", [-0.009, 0.005, 5]
)  # a delivery that was on its way arrives even after the kill
def test_the_model_allows_a_second_delivery_of_a_delayed_message_only_after_a_kill(killed_after: float) -> None:
    """A delayed message may be delivered twice without the redelivered flag if the broker is killed between the first
    delivery and the deletion of the stored message. The simulation's model therefore accepts a second delivery only if
    the broker was killed at about the time of the first one.
    """
    now = 10.0
    judge = Judge(lambda: now, {"q": Kind()})
    sent = judge.published("publisher", ["q"], delay=1.0)
    now = 11.0
    judge.delivered("q", sent.number, "consumer", redelivered=False)
    now += killed_after
    judge.kills.append((now, False))
    now += 2
    with nullcontext() if killed_after < 1 else pytest.raises(Violation, match="nothing comes twice"):
        judge.delivered("q", sent.number, "consumer", redelivered=False)


@pytest.mark.parametrize("later", [0.003, 2])
def test_the_model_allows_a_delivery_after_an_acknowledgement_only_while_the_broker_stops(later: float) -> None:
    """When the broker begins to stop, it may requeue a message that is still on its way to a closing connection, and
    another consumer may receive and acknowledge this message. The simulation's model therefore allows a consumer to
    receive a message that has already been acknowledged, but only shortly after the broker has begun to stop.
    """
    now = 10.0
    judge = Judge(lambda: now, {"q": Kind()})
    sent = judge.published("publisher", ["q"])
    now = 20.0
    judge.restarts.append(now)
    now = 20.01
    judge.delivered("q", sent.number, "without acknowledgements", redelivered=True)
    judge.settled("q", sent.number, "acked", "without acknowledgements", known=True)
    now += later
    with nullcontext() if later < 1 else pytest.raises(Violation, match="does not come back"):
        judge.delivered("q", sent.number, "closed first", redelivered=True)


def test_the_model_allows_a_second_delivery_after_a_stop_with_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a delayed message is delivered while the disk is full, and the broker is stopped before the disk has space
    again, the simulation's model allows a second delivery without the redelivered flag. Without this exception, the
    model would report a violation.
    """
    delayed = Step(2, "publish", {"queue": "q1-quorum", "count": 5, "exchange": "delayed", "delays": True})
    takes = {"prefetch": 3, "no_ack": False, "rejects": 0.0, "requeues": 0.0, "multiple": 0.0, "pause": 0.1}
    consume = Step(1, "consume", {"queue": "q1-quorum", **takes, "seconds": 15.0, "then": "cancel", "priority": 0})
    actors = (
        Actor("publisher", "Publisher", 1, (delayed,)),
        Actor("consumer", "Consumer", 1, (consume,)),
        Actor("full", "Faults", 1, (Step(2.3, "full", {"seconds": 5.0}),)),
        Actor("faults", "Faults", 1, (Step(5.0, "stop", {"seconds": 1.0}),)),
    )
    queues = {"q0-stream": "stream", "q1-quorum": "quorum"}
    plans = [Plan(seed, queues, actors, like="4.0") for seed in range(20)]
    tried = plans if IN_CI else plans[:5]
    assert [simulate(plan).violation for plan in tried] == [None] * len(tried)
    monkeypatch.setattr(Judge, "_may_be_unmarked", lambda *_: False)
    without_exception = (simulate(plan).violation for plan in plans)
    assert "nothing comes twice without `redelivered`" in (found.rule for found in without_exception if found)


def test_the_model_allows_a_queue_to_be_missing_if_a_kill_follows_the_queues_deletion() -> None:
    """If a client deletes a queue to declare it again, and the broker is killed between the deletion and the
    declaration, the queue can be missing after the restart. The simulation's model then allows the broker to confirm
    messages to this queue without storing them, and to answer requests for the queue with status 404.
    """
    confirmed_without_queue = 0
    for seed in range(20):
        if confirmed_without_queue and not IN_CI:
            break
        actors = (
            Actor(
                "administrator",
                "Administrator",
                seed,
                (Step(1, "delete", {"queue": "q"}), Step(9, "peek", {"queue": "q"})),
            ),
            Actor("publisher", "Publisher", seed, (Step(12, "publish", {"queue": "q", "count": 2}),)),
            Actor("faults", "Faults", seed, (Step(1.07, "kill", {"seconds": 0.5}), Step(11, "eio", {"seconds": 4}))),
        )
        result = simulate(Plan(seed, {"q": "classic"}, actors))
        assert result.violation is None, seed
        happened = [what for _, _, what in result.history]
        if "POST /queues/%2F/q/get: 404" in happened:
            assert "left: {'q': 0, 'dead': 0}" in happened
            confirmed_without_queue += {"Basic.Ack 1", "Basic.Ack 2"} <= {*happened}
    assert confirmed_without_queue > 0


def test_the_model_allows_a_commit_to_a_queue_that_was_just_deleted_to_fail() -> None:
    """If a queue is deleted during a transaction that publishes to it, the simulation's model allows the broker to
    answer tx.commit by closing the channel with "partial tx completion".
    """
    partial = "channel closed: 406 PRECONDITION_FAILED - partial tx completion"
    failed = 0
    for seed in range(40):
        if failed and not IN_CI:
            break
        transaction = Step(round(0.95 + seed / 400, 4), "transact", {"queue": "q", "count": 4, "commit": True})
        actors = (
            Actor("administrator", "Administrator", seed, (Step(1, "delete", {"queue": "q"}),)),
            Actor("transactions", "Transactions", seed, (transaction,)),
        )
        result = simulate(Plan(seed, {"q": "classic"}, actors, like="4.0"))
        assert result.violation is None, seed
        failed += partial in [what for _, _, what in result.history]
    assert failed > 0


def test_the_model_allows_a_declaration_with_different_arguments_after_a_queue_was_deleted() -> None:
    """If one client deletes a queue and declares it again, while another client declares it with different arguments,
    the outcome depends on the order. The simulation's model allows the broker to accept the other client's
    declaration while the queue does not exist, and to refuse it with error 406 while the queue exists.
    """
    outcomes = set()
    for seed in range(60):
        if len(outcomes) == 2 and not IN_CI:
            break
        actors = (
            Actor("administrator", "Administrator", seed, (Step(1, "delete", {"queue": "q"}),)),
            Actor("rude", "Rude", seed, (Step(round(0.95 + seed / 500, 3), "other_arguments", {"queue": "q"}),)),
        )
        result = simulate(Plan(seed, {"q": "classic"}, actors))
        assert result.violation is None, seed
        happened = [what for _, _, what in result.history]
        is_refused = any(what.startswith("channel closed: 406 PRECONDITION_FAILED - inequivalent") for what in happened)
        outcomes.add("refused" if is_refused else "accepted")  # an accepted declaration leaves no line in the history
    assert outcomes == {"refused", "accepted"}


@pytest.mark.parametrize(
    ("kind", "fault", "killed_at", "is_allowed"),
    [
        ("stream", None, 11.5, True),
        ("stream", None, 10.9, False),
        ("stream", None, 15, False),
        ("stream", [9, 15], 14, True),
        ("stream", [9, 12], 15, False),
        ("stream", [13, 15], 14, False),
        ("classic", [9, 15], 14, False),
    ],
    ids=[
        "just after it is due",
        "before it is due",
        "long after it is due",
        "during a fault that began before",
        "after a fault",
        "during a fault that began after",
        "in a classic queue",
    ],
)
def test_the_model_allows_a_delayed_message_twice_in_a_stream_only_after_a_kill(
    kind: str, fault: list[float] | None, killed_at: float, is_allowed: bool
) -> None:
    """If the broker is killed just after a delayed message became due, or during a disk fault that began before it
    became due, the simulation's model allows a stream to contain the message twice. It never allows three copies, or
    two copies in a classic queue.
    """
    now = 10.0
    judge = Judge(lambda: now, {"q": KINDS[kind]})
    judge.started()
    judge.disk_faults += [fault] if fault else []
    sent = judge.published("publisher", ["q"], delay=1.0)
    now = 10.1
    judge.outcome(sent, "confirmed")
    judge.kills.append((killed_at, False))
    now = 30.0
    judge.starts.append(now)
    with nullcontext() if is_allowed else pytest.raises(Violation, match="nothing is in a queue twice"):
        judge.check({"q": [(sent.number, {}, False)] * 2})
    with pytest.raises(Violation, match="nothing is in a queue twice"):
        judge.check({"q": [(sent.number, {}, False)] * 3})


def test_a_failing_seed_of_the_simulation_is_reduced_to_the_steps_that_make_it_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the embedded broker breaks a rule with a seed of the simulation, the printed history contains only the
    clients and steps that are needed to break the rule.
    """
    from tests.simulation import shrinking

    def fails_with_a_publisher(plan: Plan) -> Result:
        fails = any(step.what == "publish" for actor in plan.actors for step in actor.steps)
        return Result(Violation("rule", "what") if fails else None, "", [(1.0, "who", "did it")], 0.0, 0)

    monkeypatch.setattr(shrinking, "simulate", fails_with_a_publisher)
    plan = draw(1)
    shorter, result = shrink(plan, fails_with_a_publisher(plan))
    assert shorter.size == 1
    assert "who                  did it" in story(shorter, result)
