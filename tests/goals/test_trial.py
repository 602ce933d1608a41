"""What `tutorial try` does around a goal: restarting goals, and helping learners whose messages do not arrive."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice

import pytest

from mqtool.management import path
from mqtool.plays.goals import GOALS, trying
from mqtool.plays.goals.trying import Trial
from mqtool.taps import firehose_is_on, switch_firehose
from tests.brokers import TestBroker
from tests.cli.shell import wait_until
from tests.goals.attempts import Plain, watched

pytestmark = pytest.mark.own_vhost("`tutorial try` deletes its virtual host, and so leaves the firehose on")

_WAITS, _AT_ONCE, _ = GOALS["hello-world"]
_OTHER_SETTINGS = GOALS["repair"][5]


def _names(broker: TestBroker, kind: str) -> list[str]:
    listed = watched(broker).find().items(path(kind, broker.vhost))
    return [
        each["name"] for each in listed if not each["name"].startswith("amq.gen")
    ]  # on RabbitMQ, `try` has such queues


def _depth(plain: Plain, queue: str) -> int:
    return int(plain.channel().queue_declare(queue, passive=True).method.message_count)


def test_restarting_a_goal_deletes_the_learners_queues_and_exchanges(broker: TestBroker) -> None:
    """When a learner restarts a goal, `tutorial try` deletes the queues and exchanges that have been declared since
    the goal began. It keeps older queues, but purges them.
    """
    with closing(Plain(broker.url)) as plain, Trial(watched(broker)) as trial:
        plain.queue("earlier")
        exchanges = _names(broker, "exchanges")
        trial.prepare(_WAITS)
        plain.send("earlier", "x")
        plain.send(plain.queue("hello"), "y")
        plain.channel().exchange_declare("mine", "fanout")
        wait_until(lambda: _depth(plain, "earlier") == 1, "the message to be in its queue")

        assert trial.prepare_again(_WAITS) == ["hello", "mine"]
        assert _names(broker, "queues") == ["earlier"]
        assert _names(broker, "exchanges") == exchanges
        assert _depth(plain, "earlier") == 0


def test_tutorial_try_says_once_for_each_goal_how_to_reach_its_broker_if_no_message_arrives(broker: TestBroker) -> None:
    """If no message reaches the broker of `tutorial try` for some time, `tutorial try` prints a command with which
    the learner selects this broker in other terminals. It prints the command only once for each goal.
    """
    with Trial(watched(broker, "export AMQP_URL=amqp://there"), silence=0.5) as trial:
        trial.prepare(_WAITS)
        looks = trial.findings(_WAITS)
        found = next(each for each in looks if each is not None)
        assert "No message has reached this broker" in found.text
        assert found.text.endswith("\n  export AMQP_URL=amqp://there\nIf a command has failed there, read its error.")
        assert [next(looks) for _ in range(10)] == [None] * 10
        trial.prepare(_AT_ONCE)
        assert "No message has" in next(each for each in trial.findings(_AT_ONCE) if each is not None).text


def test_tutorial_try_reports_once_that_no_further_message_arrives(broker: TestBroker) -> None:
    """If the learner's commands do not use the broker of `tutorial try` by default, and no further message reaches
    this broker for some time after the first one, `tutorial try` reports once that nothing new has reached the
    broker.
    """
    with closing(Plain(broker.url)) as plain, Trial(watched(broker, "export AMQP_URL=x"), silence=2) as trial:
        trial.prepare(_WAITS)
        plain.send(plain.queue("hello"), "one")
        told = [each.text for each in islice(trial.findings(_WAITS), 100) if each is not None]
        assert sum("Nothing new has reached this broker for some time." in each for each in told) == 1


def test_messages_published_while_the_next_goal_is_prepared_are_ignored(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a learner's program still publishes messages while `tutorial try` prepares the next goal, `tutorial try`
    ignores these messages when it checks that goal.
    """
    # On a busy machine, messages published every 0.2 s may arrive more than a second apart.
    monkeypatch.setattr(trying, "_CALM", 3.0)
    monkeypatch.setattr(trying, "_CALM_AT_MOST", 60.0)
    with closing(Plain(broker.url)) as plain, Trial(watched(broker)) as trial, ThreadPoolExecutor() as threads:
        trial.prepare(_WAITS)
        channel = plain.channel()

        def publish() -> None:
            for _ in range(5):
                channel.basic_publish("", "nowhere", b"x")
                channel.connection.process_data_events(0.2)

        loop = threads.submit(publish)
        trial.prepare(_AT_ONCE)
        loop.result()
        assert [next(trial.findings(_AT_ONCE)) for _ in range(3)] == [None] * 3
        assert trial.seen.messages == []


def test_tutorial_try_does_not_report_its_own_new_queue_as_missing(broker: TestBroker) -> None:
    """When `tutorial try` begins or restarts a goal and declares a queue for this goal, it does not report that the
    queue is missing.
    """
    if broker.kind != "embedded":
        pytest.skip("the goal before it cannot be seen on RabbitMQ")
    with Trial(watched(broker)) as trial:
        trial.prepare(GOALS["repair"][4])
        for begin in (trial.prepare, trial.prepare_again):
            begin(_OTHER_SETTINGS)
            assert "invoices" in trial.seen.queues
            assert [each for each in islice(trial.findings(_OTHER_SETTINGS), 25) if each is not None] == []


def test_tutorial_try_does_not_suspect_another_broker_if_the_learner_has_a_consumer(broker: TestBroker) -> None:
    """By default, the learner's commands use the broker of `tutorial try`. If nothing happens on this broker,
    `tutorial try` usually says that the commands may be using another one. It does not say so if the learner has
    started a consumer on this broker.
    """
    with closing(Plain(broker.url)) as plain:
        plain.consume(plain.queue("hello"))
        listed = path("consumers", broker.vhost)
        wait_until(lambda: [*watched(broker).find().items(listed)], "the broker to list the consumer")
        with Trial(watched(broker), silence=0) as trial:
            trial.prepare(_WAITS)
            looks = trial.findings(_WAITS)
            assert [next(looks) for _ in range(5)] == [None] * 5


@pytest.mark.usefixtures("no_other_firehose")
def test_the_firehoses_of_four_virtual_hosts_can_be_switched_on_or_off_at_the_same_time(broker: TestBroker) -> None:
    """If mqtool switches the firehoses of four virtual hosts on or off at the same time, it repeats requests that
    RabbitMQ loses: in the end, all four firehoses are on, or all four are off.
    """
    api = watched(broker).find()
    with ExitStack() as ending, ThreadPoolExecutor() as threads:
        vhosts = [f"{broker.vhost}-{number}" for number in range(4)]
        for vhost in vhosts:
            broker.api("PUT", f"vhosts/{vhost}")
            ending.callback(broker.api, "DELETE", f"vhosts/{vhost}")
        for is_on in (True, False) * 8:
            list(threads.map(lambda vhost, on=is_on: switch_firehose(watched(broker).find(), vhost, on=on), vhosts))
            assert [firehose_is_on(api, vhost) for vhost in vhosts] == [is_on] * 4


@pytest.mark.usefixtures("no_other_firehose")
def test_tutorial_try_switches_the_firehose_on_again(broker: TestBroker) -> None:
    """If somebody switches RabbitMQ's firehose off while `tutorial try` runs, `tutorial try` switches the firehose on
    again.
    """
    if broker.kind == "embedded":
        pytest.skip("the embedded broker reports events without the firehose")
    api = watched(broker).find()
    with Trial(watched(broker)) as trial:
        trial.prepare(_WAITS)
        switch_firehose(api, broker.vhost, on=False)
        wait_until(lambda: firehose_is_on(api, broker.vhost), "the firehose to be on again")
