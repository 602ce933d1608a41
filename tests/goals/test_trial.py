"""What `try` does around a goal: it begins a goal again, and asks a learner of whom nothing is seen where they work."""

from contextlib import closing

from mqtool.management import path
from mqtool.plays.goals import GOALS
from mqtool.plays.goals.trying import Trial
from tests.brokers import TestBroker
from tests.cli.shell import wait_until
from tests.goals.attempts import Plain, watched

_WAITS = GOALS["hello-world"][0]


def _names(broker: TestBroker, kind: str) -> list[str]:
    listed = watched(broker).find().get(path(kind, broker.vhost))
    return [each["name"] for each in listed if not each["name"].startswith("amq.gen")]  # RabbitMQ: of `try` itself


def _depth(plain: Plain, queue: str) -> int:
    return int(plain.channel().queue_declare(queue, passive=True).method.message_count)


def test_a_goal_that_begins_again_finds_the_broker_as_before(broker: TestBroker) -> None:
    """`r` deletes the queues and exchanges that the learner made for this goal, and empties those of earlier goals."""
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


def test_a_learner_in_another_place_is_asked_once(broker: TestBroker) -> None:
    """If no client does anything on the broker, `try` asks once for the command that leads there, not more often."""
    with Trial(watched(broker, "export AMQP_URL=amqp://there"), silence=0.5) as trial:
        trial.prepare(_WAITS)
        looks = trial.findings(_WAITS)
        found = next(each for each in looks if each is not None)
        assert "Nothing has reached this broker yet." in found.text
        assert found.text.endswith("export AMQP_URL=amqp://there")
        assert [next(looks) for _ in range(10)] == [None] * 10


def test_a_learner_who_has_done_something_is_not_asked_where_they_work(broker: TestBroker) -> None:
    """A receiver alone shows that the learner's terminals use the right broker."""
    with closing(Plain(broker.url)) as plain:
        plain.consume(plain.queue("hello"))
        listed = path("consumers", broker.vhost)
        wait_until(lambda: watched(broker).find().get(listed), "the broker to list the consumer")
        with Trial(watched(broker), silence=0) as trial:
            trial.prepare(_WAITS)
            looks = trial.findings(_WAITS)
            assert [next(looks) for _ in range(5)] == [None] * 5
