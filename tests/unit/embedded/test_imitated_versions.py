"""The versions of RabbitMQ that the embedded broker imitates, and the counts for its Prometheus metrics."""

import sys

import pytest

from mqtool import __version__
from mqtool.broker.embedded.model.consumers import Traffic
from mqtool.broker.embedded.model.profile import PROFILES, Like, identity, profile
from mqtool.broker.embedded.model.totals import Publishes, Totals


@pytest.mark.parametrize("like", list(Like))
def test_the_broker_reports_a_version_that_begins_with_the_one_given_to_like(like: Like) -> None:
    """With each version that `--like` accepts, such as 4.2, the embedded broker reports a RabbitMQ version that
    begins with the given one, such as 4.2.9.
    """
    assert profile(str(like)) is PROFILES[like]
    assert profile(like).version.startswith(like)


def test_a_version_that_cannot_be_imitated_raises_value_error() -> None:
    """If the embedded broker is to imitate a version of RabbitMQ that it does not know, such as 3.8, ValueError is
    raised. The error names the versions that the broker can imitate.
    """
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        profile("3.8")
    assert str(refused.value) == ("cannot behave like RabbitMQ 3.8, only like 3.10, 4.0, 4.2, 4.3, 4.3.5, 4.4")


def test_the_broker_tells_clients_which_product_and_version_it_is() -> None:
    """The server properties that the embedded broker sends to clients contain the product RabbitMQ and a version of
    RabbitMQ, because clients check these two. The property `information` says that this is the embedded broker of
    mqtool.
    """
    assert identity(profile("4.2"), "rabbit@here") == {
        "cluster_name": "rabbit@here",
        "copyright": "The mqtool founders",
        "information": f"mqtool {__version__} embedded broker: for learning, demonstrations and tests",
        "platform": f"Python {sys.version.split()[0]}",
        "product": "RabbitMQ",
        "version": "4.2.9",
    }


def test_totals_begin_at_zero_for_each_protocol_and_queue_type() -> None:
    """In a new broker, the totals of published messages are zero for each protocol. The totals of messages that were
    delivered over AMQP 1.0 and the stream protocol are zero for each queue type.
    """
    totals, kinds = Totals(), ("classic", "quorum", "stream")
    assert totals.published == dict.fromkeys(("amqp091", "amqp10", "stream"), Publishes())
    assert {*totals.delivered} == {(protocol, kind) for protocol in ("amqp10", "stream") for kind in kinds}
    assert {*totals.deleted} == {*kinds}
    for traffic in (*totals.delivered.values(), *totals.deleted.values()):
        assert traffic.counts() == Traffic().counts()
        traffic.add(Traffic(delivered=1))
    assert totals.found_empty["classic"] == 0
    totals.found_empty["classic"] += 1


def test_each_count_of_published_messages_is_added_to_its_total() -> None:
    """A channel counts several kinds of published messages, such as confirmed, routed and returned ones. When the
    broker adds these counts to its totals, each count is added to the total of the same kind.
    """
    totals = Publishes(1, 2, 3, 4, 5, 6)
    totals.add(Publishes(10, 20, 30, 40, 50, 60))
    assert totals == Publishes(11, 22, 33, 44, 55, 66)
