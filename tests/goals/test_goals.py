"""The goals of `tutorial try`: each can be reached with commands and with plain pika, and is not reached otherwise."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mqtool.plays.goals import GOALS
from mqtool.plays.goals.goal import Goal
from mqtool.testing import EmbeddedBroker
from tests.brokers import TestBroker, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.goals import (
    amqp10_attempts,
    delayed_messages_attempts,
    headers_attempts,
    hello_world_attempts,
    publish_subscribe_attempts,
    publisher_confirms_attempts,
    repair_attempts,
    routing_attempts,
    rpc_attempts,
    stream_attempts,
    topics_attempts,
    work_queues_attempts,
)
from tests.goals.attempts import PROGRAMS, Attempt, Attempts, Learner, Plain, Wrong

pytestmark = pytest.mark.own_vhost("`tutorial try` deletes its virtual host, and so leaves the firehose on")

ATTEMPTS: dict[str, dict[str, Attempts]] = {
    "hello-world": hello_world_attempts.ATTEMPTS,
    "work-queues": work_queues_attempts.ATTEMPTS,
    "publish-subscribe": publish_subscribe_attempts.ATTEMPTS,
    "routing": routing_attempts.ATTEMPTS,
    "topics": topics_attempts.ATTEMPTS,
    "headers": headers_attempts.ATTEMPTS,
    "rpc": rpc_attempts.ATTEMPTS,
    "publisher-confirms": publisher_confirms_attempts.ATTEMPTS,
    "delayed-messages": delayed_messages_attempts.ATTEMPTS,
    "stream-hello-world": stream_attempts.READING,
    "stream-offset-tracking": stream_attempts.TRACKING,
    "amqp10-hello-world": amqp10_attempts.HELLO_WORLD,
    "amqp10-work-queues": amqp10_attempts.WORK_QUEUES,
    "repair": repair_attempts.ATTEMPTS,
}

EVERY_GOAL = [
    pytest.param(goal, ATTEMPTS[name][goal.name], id=f"{name}.{goal.name}") for name in GOALS for goal in GOALS[name]
]
EVERY_MISTAKE = [
    pytest.param(goal, wrong, id=f"{name}.{goal.name}.{number}")
    for name in GOALS
    for goal in GOALS[name]
    for number, wrong in enumerate(ATTEMPTS[name][goal.name].wrong, 1)
]


@pytest.fixture
def learner(goal: Goal, broker: TestBroker, shell: Shell) -> Iterator[Learner]:
    """A learner who tries a goal."""
    if goal.only_embedded and broker.kind != "embedded":
        pytest.skip(goal.only_embedded)
    with ExitStack() as ending:
        is_restarted = goal.fault is not None and goal.fault.name == "restart"
        if is_restarted or goal.over_amqp10:  # the suite's broker must not be restarted, and may behave like 3.10
            own = ending.enter_context(EmbeddedBroker(management_port=0))
            broker = TestBroker("embedded", own.url.rpartition("/")[0], str(own.management_url)).with_fresh_vhost("try")
            shell.environment["MQTOOL_URL"] = broker.url
        yield ending.enter_context(Learner(goal, broker, shell).begun())


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("goal", "attempts"), EVERY_GOAL)
def test_each_goal_can_be_reached_with_commands(attempts: Attempts, learner: Learner) -> None:
    """If a learner's mqtool commands do what a goal asks for, `tutorial try` says that the goal is reached."""
    learner.make(attempts.commands)
    assert learner.wait_for("reached")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("goal", "attempts"), EVERY_GOAL)
def test_each_goal_can_be_reached_with_plain_pika(attempts: Attempts, learner: Learner) -> None:
    """If a learner's own program, written with pika, does what a goal asks for, `tutorial try` says that the goal is
    reached.
    """
    learner.make(attempts.plain)
    assert learner.wait_for("reached")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("goal", "wrong"), EVERY_MISTAKE)
def test_a_wrong_attempt_gets_an_explanation_and_does_not_reach_the_goal(
    wrong: Wrong, learner: Learner, broker: TestBroker
) -> None:
    """After a wrong attempt at a goal, `tutorial try` says what is wrong or missing, and does not count the goal as
    reached.
    """
    learner.make(wrong.attempt)
    learner.wait_for("mistake", (broker.kind == "rabbitmq" and wrong.on_rabbitmq) or wrong.answer)
    assert [each for each in learner.findings if each.kind == "reached"] == []


def _told(plain: Plain) -> None:
    channel = plain.channel()
    channel.basic_publish("", "nowhere", b"Hello?", mandatory=True)
    channel.connection.process_data_events(0.2)


def _to_helo(plain: Plain) -> None:
    plain.send(plain.queue("helo"), "Hello?")


def _given_back(plain: Plain) -> None:
    worker = plain.consume(plain.queue("task_queue"))
    plain.send("task_queue", "long")
    worker.next()
    worker.channel.basic_cancel(worker.channel.consumer_tags[0])
    worker.channel.basic_nack(worker.got[0][0], requeue=True)
    plain.receive("task_queue")


def _done(plain: Plain) -> None:
    plain.send(plain.queue("task_queue"), "quick")
    plain.receive("task_queue")


_MISTAKES_IN_TURN = [
    pytest.param(GOALS["hello-world"][2], (_told, "returned"), (_to_helo, "queue 'helo'"), id="hello-world"),
    pytest.param(
        GOALS["work-queues"][2], (_given_back, "itself requeued 'long'"), (_done, "done before"), id="work-queues"
    ),
]


@pytest.mark.parametrize(("goal", "first", "second"), _MISTAKES_IN_TURN)
@pytest.mark.sampled(1)
def test_tutorial_try_reports_a_second_mistake_while_the_first_is_still_visible(
    first: tuple[Attempt, str], second: tuple[Attempt, str], learner: Learner
) -> None:
    """After a learner has made a mistake, `tutorial try` reports a second mistake although the first one is still
    visible on the broker. It reports the first mistake again only if the learner makes it again.
    """
    for attempt, answer in (first, second):
        learner.make(attempt)
        learner.wait_for("mistake", answer)

    def answers() -> int:
        return sum(first[1] in each.text for each in learner.findings)

    assert answers() == 1
    learner.make(first[0])
    wait_until(lambda: answers() == 2, lambda: f"another answer; there is {learner.findings}")


@on_any_broker
@pytest.mark.parametrize("goal", [GOALS["publish-subscribe"][0]], ids=["dropped"])
def test_tutorial_try_reports_each_message_to_a_missing_exchange(goal: Goal, learner: Learner) -> None:
    """If a program or a command publishes to an exchange that does not exist, `tutorial try` names the message and the
    exchange each time.
    """
    learner.make(lambda plain: plain.send("", "Hi", "lgos"))
    learner.wait_for("mistake", "'Hi' was published to the exchange 'lgos', which does not exist")
    learner.make("mqtool send -e lgso Hello")
    learner.wait_for("mistake", "'Hello' was published to the exchange 'lgso', which does not exist")


@pytest.mark.parametrize("goal", [GOALS["hello-world"][2]], ids=["no-queue"])
def test_the_last_hint_of_the_goal_no_queue_reaches_it_even_if_the_example_queue_exists(
    goal: Goal, learner: Learner
) -> None:
    """The text of the goal "no-queue" names the queue 'helo' as an example of a queue that does not exist. The commands
    in the goal's last hint reach the goal even if the learner has declared this queue before.
    """
    learner.make(f"mqtool send -q helo 'Hello?'; {goal.hints[2]}")
    assert learner.wait_for("reached")


@pytest.mark.parametrize("goal", [GOALS["work-queues"][3]], ids=["restart"])
def test_tutorial_try_names_a_message_that_was_received_after_the_restart(goal: Goal, learner: Learner) -> None:
    """The goal "restart" asks for a message that survives a restart of the broker. If the learner has received one
    persistent message before the restart and one after it, `tutorial try` names the one that was received after it.
    """
    learner.make(work_queues_attempts.received_before_the_restart)
    assert "'kept' is persistent" in learner.wait_for("reached")


@pytest.mark.parametrize("goal", [GOALS["work-queues"][3]], ids=["restart"])
def test_tutorial_try_does_not_say_that_a_purge_deleted_a_message_lost_in_the_restart(
    goal: Goal, learner: Learner
) -> None:
    """If a learner publishes a persistent and a transient message, restarts the broker and purges the queue,
    `tutorial try` says that the purge deleted the persistent message. It does not say this of the transient message,
    which was lost in the restart.
    """
    learner.make(work_queues_attempts.purge_after_restart)
    learner.wait_for(
        "mistake", "The persistent message survived the restart, but left the queue before anybody received it"
    )
    assert learner.trial is not None
    true = [text for each in goal.mistakes if (text := each(learner.trial.seen))]
    assert [text for text in true if "was purged: 'kept' was deleted" in text]
    assert not [text for text in true if "'lost'" in text]


@pytest.mark.parametrize("goal", [GOALS["routing"][1]], ids=["no-errors"])
def test_tutorial_try_mentions_a_wrong_binding_only_once(goal: Goal, learner: Learner) -> None:
    """If a learner has bound a queue with a wrong key, `tutorial try` reports this mistake once, and not again for
    each message that is published later.
    """
    learner.make("mqtool exchange bind direct_logs errors error; mqtool emit-log direct error 1")
    learner.wait_for("mistake", "still bound with 'eror'")
    for body in ("2", "3"):
        learner.make(f"mqtool emit-log direct other {body}")
        learner.wait_until_seen(body)
    assert sum("still bound" in each.text for each in learner.findings) == 1


@pytest.mark.parametrize("goal", [GOALS["publish-subscribe"][1]], ids=["two-copies"])
def test_tutorial_try_names_a_bound_queue_without_a_consumer(goal: Goal, learner: Learner) -> None:
    """The goal "two-copies" is reached even if a third queue, which has no consumer, is bound to the exchange 'logs'.
    `tutorial try` then says that nobody has received the copy in that queue.
    """
    learner.make(
        "mqtool queue declare left; mqtool exchange declare logs fanout; mqtool exchange bind logs left;"
        + publish_subscribe_attempts.ATTEMPTS["two-copies"].commands
    )
    assert "Nobody has received the copy in 'left'" in learner.wait_for("reached")


@pytest.mark.parametrize("goal", [GOALS["topics"][0]], ids=["star"])
def test_the_goal_star_is_reached_even_if_the_receiver_exits_immediately(
    goal: Goal, learner: Learner, broker: TestBroker
) -> None:
    """The goal "star" of the tutorial `topics` is reached even if the learner stops the receiver as soon as all three
    messages are published and the receiver has printed the one that its binding matches.
    """
    if broker.kind != "embedded":
        pytest.skip("RabbitMQ's bindings are read every few seconds: a queue may be gone before it is seen")
    publish = "for key in kern kern.disk kern.disk.full; do mqtool emit-log topic $key x; done"
    receive = "start mqtool receive-log topic 'kern.*' >got; until [ -e bound ]; do sleep 0.02; done"
    learner.make(f"{receive}; {publish}; until grep -q kern.disk got; do sleep 0.02; done; kill -INT %1; wait %1")
    learner.wait_until_bound("topic_logs")
    assert learner.wait_for("reached")


_FIXED = [
    pytest.param(goal, repair_attempts.ATTEMPTS[goal.name].wrong[0], repair_attempts.ATTEMPTS[goal.name], id=goal.name)
    for goal in GOALS["repair"][:5]
]


@pytest.mark.parametrize(("goal", "wrong", "attempts"), _FIXED)
@pytest.mark.sampled(1)
@large
def test_a_repaired_program_reaches_its_goal_without_a_restart_of_the_goal(
    wrong: Wrong, attempts: Attempts, learner: Learner
) -> None:
    """If the learner repairs a program after `tutorial try repair` has reported a defect, the program reaches the goal.
    The learner does not need to restart the goal.
    """
    learner.make(wrong.attempt)
    learner.wait_for("mistake", wrong.answer)
    learner.make(attempts.commands)
    assert learner.wait_for("reached")


@pytest.mark.parametrize("goal", [GOALS["delayed-messages"][0]], ids=["overtaken"])
@pytest.mark.parametrize("way", ["commands", "plain"])
@pytest.mark.sampled(1)
def test_tutorial_try_reports_no_mistake_while_a_delayed_message_is_not_due(
    goal: Goal, way: str, learner: Learner
) -> None:
    """While the delayed messages of a correct solution are not yet due, `tutorial try` reports no mistake."""
    learner.make(getattr(delayed_messages_attempts.ATTEMPTS[goal.name], way))
    learner.wait_for("reached")
    assert [each.text for each in learner.findings if each.kind == "mistake"] == []


def test_the_goal_two_copies_says_that_the_broker_does_not_see_files() -> None:
    """The text of the goal "two-copies" says that the broker does not see a file in which a receiver saves messages."""
    (goal,) = (each for each in GOALS["publish-subscribe"] if each.name == "two-copies")
    assert "the broker does not see the file" in goal.ask


def test_every_goal_has_hints_and_tests_of_wrong_attempts() -> None:
    """Each goal of `tutorial try` has hints, the first of which is a question. For each goal, there are tests of at
    least three wrong attempts, each with its own explanation.
    """
    for name, goals in GOALS.items():
        assert [goal.name for goal in goals] == [*ATTEMPTS[name]]
        for goal in goals:
            answers = {wrong.answer for wrong in ATTEMPTS[name][goal.name].wrong}
            assert len(answers) >= 3, f"{name}.{goal.name}"
            assert len(answers) == len(ATTEMPTS[name][goal.name].wrong), f"{name}.{goal.name}"
            assert all(goal.hints), f"{name}.{goal.name}"
            assert goal.hints[0].endswith("?"), f"the first hint of {name}.{goal.name} is a question"


def test_every_program_to_repair_is_short_and_has_a_goal() -> None:
    """In `tutorial try repair`, the learner fixes faulty programs that mqtool supplies. Each of these programs has at
    most 30 lines and belongs to a goal.
    """
    programs = {path.name: path.read_text() for path in PROGRAMS.glob("*.py")}
    assert programs.keys() == {goal.program for goal in GOALS["repair"]}
    assert max(text.count("\n") for text in programs.values()) <= 30
