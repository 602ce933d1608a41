"""Dead letters: which are chosen, what proves their origin, and, on an embedded broker in this process, that none is
lost when they are moved back.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import unquote

import pytest

from mqtool.amqp import Channel, Connection, parse_addresses
from mqtool.errors import AccessRefused, NotConfirmed
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.testing import Vhost
from mqtool.topology import Queue
from mqtool.work.redriving import Origins, Unproven, choice, dead_letter_queues, drop, redrive
from tests.unit.test_queue_limits import FakeApi

DEAD = {"mqtool-reason": "retries exhausted", "mqtool-last-error": "exit status 1", "mqtool-queue": "jobs"}


def letter(headers: dict[str, Any] | None = None, exchange: str = "", key: str = "jobs.dlq") -> Delivery:
    properties = {"message_id": "a", "headers": DEAD if headers is None else headers}
    return Delivery(b"job", exchange, key, "jobs.dlq", redelivered=False, properties=properties, delivery_tag=1)


#: All conditions, met by a letter() that is two minutes old.
ALL = {"ids": ["a"], "reason": "exhausted", "error": "status", "older": 60}


@pytest.mark.parametrize(
    ("conditions", "is_chosen"),
    [
        ({}, True),
        ({"ids": ["b", "a"]}, True),
        ({"ids": ["b"]}, False),
        ({"reason": "exhausted"}, True),
        ({"reason": "rejected"}, False),
        ({"error": "status 1"}, True),
        ({"error": "status 2"}, False),
        ({"older": 120}, True),
        ({"older": 130}, False),
        (ALL, True),
        ({**ALL, "ids": ["b"]}, False),
        ({**ALL, "reason": "rejected"}, False),
        ({**ALL, "error": "timeout"}, False),
        ({**ALL, "older": 180}, False),
    ],
    ids=[
        "no condition",
        "id",
        "other id",
        "reason",
        "other reason",
        "error",
        "other error",
        "older",
        "not old enough",
        "all conditions",
        "all but the id",
        "all but the reason",
        "all but the error",
        "all but the age",
    ],
)
def test_a_dead_letter_is_chosen_if_it_meets_all_conditions(conditions: dict[str, Any], *, is_chosen: bool) -> None:
    """`dlq` commands choose dead letters by id, by a part of their reason or of their last error, and by age. They
    choose a dead letter only if it meets all of the given conditions.
    """
    first = datetime.now(UTC) - timedelta(seconds=121)
    assert choice(**conditions)(letter({**DEAD, "mqtool-first-failure": first})) is is_chosen


def test_a_condition_does_not_match_a_dead_letter_whose_error_or_age_is_unknown() -> None:
    """In `dlq` commands, a condition on the last error does not match a dead letter whose last error is unknown,
    unless the condition is an empty string. A condition on the age does not match a dead letter whose age is unknown.
    """
    unknown = letter({"mqtool-reason": "rejected"})
    assert not choice(error="X")(unknown)
    assert choice(error="")(unknown)
    assert not choice(older=0)(unknown)
    assert choice(reason="rejected")(unknown)


def origins(queues: dict[str, Any], source: str = "jobs.dlq") -> Origins:
    """Return the origins of dead letters on a broker with these queues: their arguments, or an error."""
    views = {
        f"queues/v/{name}": found if isinstance(found, Exception) else {"name": name, "arguments": found}
        for name, found in queues.items()
    }
    return Origins(source, "v", lambda: cast(Management, FakeApi(views)))


def died_in(queue: str) -> dict[str, Any]:
    return {"x-death": [{"queue": queue, "reason": "expired"}]}


def test_the_name_of_workers_dead_letter_queue_shows_where_its_dead_letters_came_from() -> None:
    """`worker` publishes the dead letters of QUEUE to QUEUE.dlq through the default exchange. The name of this
    dead-letter queue tells mqtool that they came from QUEUE, so it does not ask the management API.
    """

    def api() -> Management:
        raise AssertionError("asked")

    assert Origins("jobs.dlq", "v", api).of(letter()) == "jobs"


@pytest.mark.parametrize(
    ("arguments", "exchange", "key"),
    [
        ({"x-dead-letter-exchange": "dlx"}, "dlx", "any"),
        ({"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "dead"}, "dlx", "dead"),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "all.dlq"}, "", "all.dlq"),
    ],
    ids=["exchange", "exchange and key", "default exchange"],
)
def test_a_dead_letters_origin_is_proven_by_the_dead_letter_exchange_and_routing_key_of_the_queue(
    arguments: dict[str, Any], exchange: str, key: str
) -> None:
    """A dead letter's headers, which could be forged, name the queue that it came from. mqtool considers this origin
    proven if the queue's dead-letter exchange is the exchange to which the dead letter was published. If the queue
    also sets a dead-letter routing key, the dead letter must have this key.
    """
    assert origins({"orders": arguments}, "all.dlq").of(letter(died_in("orders"), exchange, key)) == "orders"


@pytest.mark.parametrize(
    ("queues", "dead", "why"),
    [
        ({}, letter({}), "message a does not say which queue it came from"),
        ({}, letter(died_in("orders")), "says that it came from 'orders', which does not exist"),
        ({"orders": AccessRefused("no rights")}, letter(died_in("orders")),
         "says that it came from 'orders', which cannot be verified: no rights"),
        ({"orders": {}}, letter(died_in("orders")),
         "says that it came from 'orders', which does not dead-letter to 'jobs.dlq'"),
        ({"orders": {"x-dead-letter-exchange": "dlx"}}, letter(died_in("orders"), "other", "key"),
         "says that it came from 'orders', which does not dead-letter to 'jobs.dlq' through exchange 'other'"),
        ({"orders": {"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "dead"}},
         letter(died_in("orders"), "dlx", "other"),
         "says that it came from 'orders', which does not dead-letter to 'jobs.dlq' through exchange 'dlx'"),
        ({"jobs": {}}, letter(exchange="logs"),
         "says that it came from 'jobs', which does not dead-letter to 'jobs.dlq' through exchange 'logs'"),
        ({"jobs": {}}, letter(key="other"), "says that it came from 'jobs', which does not dead-letter to 'jobs.dlq'"),
    ],
    ids=[
        "no queue", "missing queue", "no permission", "no dead-letter exchange", "other exchange",
        "other key", "published by a client", "other key of the default exchange",
    ],
)  # fmt: skip
def test_if_a_dead_letters_origin_is_not_proven_the_error_says_why(
    queues: dict[str, Any], dead: Delivery, why: str
) -> None:
    """If `dlq redrive` cannot prove which queue a dead letter came from, its error gives the reason: the headers name
    no queue, or the queue that they name does not exist, is not accessible, or does not have the dead-letter exchange
    and routing key with which the dead letter was published.
    """
    with pytest.raises(Unproven) as error:
        origins(queues).of(dead)
    assert str(error.value) == (why if why.startswith("message") else f"message a {why}")


def test_a_queue_from_which_several_dead_letters_came_is_looked_up_once() -> None:
    """If several dead letters name the same queue as their origin, mqtool looks this queue up in the management API
    only once, even if there is no such queue.
    """
    asked = list[str]()

    class CountingApi(FakeApi):
        def get(self, path: str) -> Any:
            asked.append(unquote(path))
            return super().get(path)

    api = CountingApi({"queues/v/orders": {"arguments": {"x-dead-letter-exchange": "dlx"}}})
    ours = Origins("all.dlq", "v", lambda: cast(Management, api))
    for _ in range(2):
        assert ours.of(letter(died_in("orders"), "dlx", "key")) == "orders"
        with pytest.raises(Unproven):
            ours.of(letter(died_in("missing"), "dlx", "key"))
    assert asked == ["queues/v/orders", "queues/v/missing"]


def test_dead_letter_queues_are_found_by_their_name_and_by_the_queues_that_dead_letter_to_them() -> None:
    """mqtool considers a queue a dead-letter queue if it is named NAME.dlq, if a queue dead-letters to it, or if it is
    bound to a dead-letter exchange. Exclusive queues do not count. Nor does a queue count if only wait queues
    dead-letter to it.
    """
    arguments: dict[str, dict[str, Any]] = {
        "jobs": {},
        "jobs.dlq": {},
        "orphan.dlq": {},
        "by-key": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"},
        "dead": {},
        "to-itself": {"x-dead-letter-exchange": ""},
        "to-missing": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "missing"},
        "wait": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "target", "x-expires": 5},
        "target": {},
        "by-exchange": {"x-dead-letter-exchange": "dlx"},
        "bound": {},
    }
    arguments |= {f"to-missing-{number}": {"x-dead-letter-exchange": f"missing-{number}"} for number in range(20)}
    views = [{"name": name, "arguments": found} for name, found in arguments.items()]
    views += [
        {"name": "mine.dlq", "arguments": {}, "exclusive": True},
        {"name": "by-policy", "effective_policy_definition": {"dead-letter-exchange": "dlx2"}},
        {"name": "bound2", "arguments": None},
    ]

    def bound(queue: str) -> list[dict[str, str]]:
        return [
            {"destination": queue, "destination_type": "queue"},
            {"destination": "target", "destination_type": "exchange"},
        ]

    api = FakeApi({
        "queues/v": views, "exchanges/v/dlx/bindings/source": bound("bound"),
        "exchanges/v/dlx2/bindings/source": bound("bound2"),
    })  # fmt: skip
    assert dead_letter_queues(cast(Management, api), "v") == [
        "bound", "bound2", "dead", "jobs.dlq", "orphan.dlq", "to-itself",
    ]  # fmt: skip


@pytest.fixture
def channel(amqp_vhost: Vhost) -> Iterator[Channel]:
    """A channel of mqtool's own client on the broker in this process."""
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        channel = connection.channel()
        for name in ("jobs", "jobs.dlq"):
            channel.declare(Queue(name, durable=True))
        yield channel


def bury(channel: Channel, *queues: str) -> None:
    """Publish dead letters to jobs.dlq whose headers name these queues; their bodies are numbers."""
    messages = [Message(b"%d" % number, properties={"headers": {**DEAD, "mqtool-queue": name}})
                for number, name in enumerate(queues)]  # fmt: skip
    assert len([*channel.publish(messages, routing_key="jobs.dlq")]) == len(queues)


def bodies(vhost: Vhost, queue: str) -> list[int]:
    return [int(message.body) for message in vhost.queue(queue).messages(0)]


def test_a_redrive_moves_chosen_dead_letters_back_to_the_queue_they_came_from(
    amqp_vhost: Vhost, channel: Channel
) -> None:
    """`dlq redrive` moves the chosen dead letters back to the queues they came from, in order. If it is not proven
    which queue a chosen dead letter came from, this dead letter stays, and is reported. Dead letters that were not
    chosen stay.
    """
    bury(channel, "jobs", "jobs", "other", "jobs", "jobs")
    left = list[str]()
    moving = redrive(channel, origins({}), "jobs.dlq", lambda each: each.body != b"3", left.append)
    assert [each.body for each in moving] == [b"0", b"1", b"4"]
    channel.close()
    assert amqp_vhost.wait_for(lambda: bodies(amqp_vhost, "jobs.dlq") == [2, 3])
    assert bodies(amqp_vhost, "jobs") == [0, 1, 4]
    assert amqp_vhost.queue("jobs").messages()[0].headers == {"mqtool-redrives": 1}
    assert left == ["a message without id ('2') says that it came from 'other', which does not exist"]


def test_a_queue_that_does_not_accept_its_dead_letters_does_not_stop_a_redrive(
    amqp_vhost: Vhost, channel: Channel
) -> None:
    """If a queue does not accept one of its dead letters back, all dead letters that came from this queue stay in the
    dead-letter queue, and `dlq redrive` reports each of them. It still moves the dead letters that came from other
    queues.
    """
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs.dlq"}
    bury(channel, *["gone"] * 150, "jobs")
    left = list[str]()
    moving = redrive(channel, origins({"gone": arguments}), "jobs.dlq", lambda _: True, left.append)
    assert [each.body for each in moving] == [b"150"]
    channel.close()
    assert amqp_vhost.wait_for(lambda: bodies(amqp_vhost, "jobs.dlq") == [*range(150)])
    assert len(left) == 150
    assert left[0] == "'gone' did not take a message without id ('0'): NO_ROUTE (312)"
    assert left[-1] == "a message without id ('149') was in 'gone', too"


def test_a_redrive_to_a_named_queue_ends_if_the_queue_does_not_accept_a_message(
    amqp_vhost: Vhost, channel: Channel
) -> None:
    """If `dlq redrive --to` names a queue that does not accept one of the dead letters, the redrive ends with an error,
    and all dead letters stay. The hint names the option that chooses another queue.
    """
    bury(channel, "jobs", "other")
    with pytest.raises(NotConfirmed, match="'gone' did not take a message without id") as error:
        list(redrive(channel, "gone", "jobs.dlq", lambda _: True, pytest.fail))
    assert error.value.hint == "it is still in jobs.dlq; --to names another queue"
    channel.close()
    assert amqp_vhost.wait_for(lambda: bodies(amqp_vhost, "jobs.dlq") == [0, 1])


def test_a_redrive_can_move_all_dead_letters_to_a_named_queue(amqp_vhost: Vhost, channel: Channel) -> None:
    """`dlq redrive --to` moves dead letters to the named queue, wherever they came from. Dead letters that arrive
    during the redrive stay.
    """
    bury(channel, "jobs", "other")
    moving = redrive(channel, "jobs", "jobs.dlq", lambda _: True, pytest.fail)
    bury(channel, "late")
    assert [each.body for each in moving] == [b"0", b"1"]
    assert bodies(amqp_vhost, "jobs") == [0, 1]
    channel.close()
    assert amqp_vhost.wait_for(lambda: bodies(amqp_vhost, "jobs.dlq") == [0])


def test_dlq_drop_deletes_only_the_chosen_dead_letters(amqp_vhost: Vhost, channel: Channel) -> None:
    """`dlq drop` deletes only the chosen dead letters, and leaves the others in order. It first counts the dead letters
    in the queue. One that arrives after that is kept, even if others have left the queue in the meantime.
    """
    bury(channel, "jobs", "jobs", "jobs", "jobs")
    dropping = drop(channel, "jobs.dlq", lambda each: each.body != b"1", 5)
    bury(channel, "late")
    assert [each.body for each in dropping] == [b"0", b"2", b"3"]
    channel.close()
    assert amqp_vhost.wait_for(lambda: bodies(amqp_vhost, "jobs.dlq") == [1, 0])
    assert bodies(amqp_vhost, "jobs") == []
