"""Policies and operator policies: which one applies, what it changes, and which are refused."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, NackError

from mqtool.broker.embedded import EmbeddedBroker
from tests.protocol.conftest import Api, Take

SetPolicy = Callable[..., None]


@pytest.fixture
def set_policy(api: Api, vhost: str) -> SetPolicy:
    """Sets a policy for all queues and exchanges whose names begin with the name of the policy."""

    def put(name: str, definition: dict[str, Any], kind: str = "policies", **more: object) -> None:
        status, answer = api("PUT", f"{kind}/{vhost}/{name}", {"pattern": f"^{name}", "definition": definition, **more})
        assert status in (201, 204), answer

    return put


def depth(channel: BlockingChannel, queue: str) -> int:
    """The number of ready messages."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_policy_with_a_smaller_max_length_dead_letters_surplus_messages_immediately(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, api: Api, vhost: str, kind: str
) -> None:
    """If a policy sets a max-length smaller than a queue's x-max-length, the queue dead-letters its surplus messages
    immediately. After the policy is deleted, the queue's x-max-length applies again.
    """
    channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": kind, "x-max-length": 5})
    channel.queue_declare("dead")
    for number in range(7):
        channel.basic_publish("", "jobs", str(number).encode())
    take.until(lambda: depth(channel, "jobs") == 5)
    set_policy("jo", {"max-length": 2, "dead-letter-exchange": "", "dead-letter-routing-key": "dead"})
    take.until(lambda: depth(channel, "jobs") == 2)
    assert sorted(take.bodies("dead", 3)) == [b"2", b"3", b"4"]
    # Now the queue's own limit is the smaller one.
    set_policy("jo", {"max-length": 9, "dead-letter-exchange": "", "dead-letter-routing-key": "dead"})
    assert api("DELETE", f"policies/{vhost}/jo")[0] == 204

    def grown() -> bool:
        channel.basic_publish("", "jobs", b"x")
        return depth(channel, "jobs") == 5

    take.until(grown)


def test_the_smaller_limit_of_a_policy_and_an_operator_policy_applies(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy
) -> None:
    """If a policy and an operator policy both set max-length for a queue, the smaller value applies."""
    channel.queue_declare("a")
    channel.queue_declare("b")
    set_policy("a", {"max-length": 2})
    set_policy("b", {"max-length": 9})
    for name, limit in (("a", 9), ("b", 3)):
        set_policy(name, {"max-length": limit}, "operator-policies")

    def full() -> bool:
        for name in ("a", "b"):
            channel.basic_publish("", name, b"x")
        return (depth(channel, "a"), depth(channel, "b")) == (2, 3)

    take.until(lambda: full() and full() and full() and full() and full())


@pytest.mark.parametrize(("own", "limit"), [(None, 1), (5, 1), (1, 5)])
def test_queue_arguments_override_the_dead_letter_settings_of_a_policy(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, own: int | None, limit: int
) -> None:
    """If a queue's arguments and a policy both set a dead-letter exchange and routing key, those in the arguments
    apply. The policy's max-length still applies, unless the queue's x-max-length is smaller.
    """
    channel.queue_declare("dead")
    channel.queue_declare("other")
    set_policy("jobs", {"dead-letter-exchange": "amq.fanout", "dead-letter-routing-key": "other", "max-length": limit})
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("jobs", arguments=arguments | ({} if own is None else {"x-max-length": own}))
    channel.queue_bind("other", "amq.fanout")
    for body in (b"1", b"2"):
        channel.basic_publish("", "jobs", body)
    assert take.one("dead")[2] == b"1"
    assert depth(channel, "other") == 0


@pytest.mark.parametrize(("kind", "left"), [("classic", 5), ("quorum", 2)])
def test_a_policy_overrides_the_overflow_argument_of_a_quorum_queue_only(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, kind: str, left: int
) -> None:
    """If a queue's x-overflow and a policy's overflow differ, the argument applies to a classic queue, and the policy
    to a quorum queue. For example, a quorum queue with x-overflow reject-publish drops messages if a policy sets
    drop-head and a max-length that the queue exceeds.
    """
    arguments = {"x-queue-type": kind, "x-overflow": "reject-publish"}
    channel.queue_declare("jobs", durable=True, arguments=arguments)
    channel.queue_declare("mails", durable=True, arguments={**arguments, "x-overflow": "drop-head"})
    set_policy("mails", {"max-length": 2, "overflow": "reject-publish"})
    channel.confirm_delivery()
    for number in range(5):
        channel.basic_publish("", "jobs", str(number).encode())
    set_policy("jobs", {"max-length": 2, "overflow": "drop-head"})
    take.until(lambda: depth(channel, "jobs") == left)
    assert is_rejecting(channel, "jobs") is (kind == "classic")
    assert is_rejecting(channel, "mails") is (kind == "quorum")


def is_rejecting(channel: BlockingChannel, queue: str) -> bool:
    """Publish some messages; return True if the queue rejects one. A quorum queue may take one more than its limit."""
    try:
        for _ in range(12):
            channel.basic_publish("", queue, b"x")
    except NackError:
        return True
    return False


@pytest.mark.parametrize("limit", ["max-length", "max-length-bytes"])
@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_a_policy_with_a_limit_and_reject_publish_dead_letters_surplus_messages_of_a_classic_queue(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, limit: str, overflow: str
) -> None:
    """If one policy sets both a length limit and the overflow behaviour reject-publish or reject-publish-dlx, a
    classic queue first dead-letters its surplus messages, and then rejects new ones. If the queue already had this
    overflow behaviour, it keeps its surplus messages. A quorum queue with reject-publish also keeps them.
    """
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    bodies = [bytes([number]) for number in range(60)]  # the embedded broker dead-letters them in several turns
    channel.queue_declare("dead")
    channel.confirm_delivery()
    set_policy("mails", {"overflow": overflow})
    for name, kind in (("jobs", "classic"), ("mails", "classic"), ("tasks", "quorum")):
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind, **arguments})
        for body in bodies:
            channel.basic_publish("", name, body)
    set_policy("tasks", {limit: 1, "overflow": "reject-publish"})
    take.until(lambda: is_rejecting(channel, "tasks"))
    for name in ("mails", "jobs"):
        set_policy(name, {limit: 1, "overflow": overflow})
    take.until(lambda: depth(channel, "jobs") == 1)
    assert take.bodies("dead", 59) == bodies[:-1]
    assert is_rejecting(channel, "jobs")
    assert take.one("jobs")[2] == bodies[-1]
    take.until(lambda: is_rejecting(channel, "mails"))
    assert min(depth(channel, "mails"), depth(channel, "tasks")) >= len(bodies)
    assert [take.one(name)[2] for name in ("mails", "tasks")] == [bodies[0]] * 2


@pytest.mark.parametrize("by_policy", [True, False], ids=["policy", "argument"])
def test_a_full_quorum_queue_with_reject_publish_dlx_rejects_no_messages(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, by_policy: bool
) -> None:
    """Quorum queues do not support the overflow behaviour reject-publish-dlx. The broker accepts it, as an argument or
    from a policy, but a full quorum queue then dead-letters its oldest messages instead of rejecting new ones.
    """
    overflow = "reject-publish-dlx"
    set_policy("jobs", {"overflow": overflow} if by_policy else {"message-ttl": 3_600_000})
    arguments = {"x-max-length": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    own = {"x-overflow": "reject-publish" if by_policy else overflow}
    channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum", **arguments, **own})
    channel.queue_declare("dead")
    channel.confirm_delivery()
    bodies = [b"%d" % number for number in range(12)]
    for body in bodies:
        channel.basic_publish("", "jobs", body)
    assert take.bodies("dead", 10) == bodies[:10]
    assert take.bodies("jobs", 2) == bodies[10:]


@pytest.mark.differs_since("4.0", "the lower value applies")
def test_a_policy_overrides_the_expires_argument_of_a_quorum_queue_up_to_rabbitmq_3_13(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, api: Api, vhost: str
) -> None:
    """Up to RabbitMQ 3.13, if a policy sets a longer `expires` than the x-expires of a quorum queue, the policy's
    value applies. After the policy is deleted, the queue's own x-expires applies again.
    """
    set_policy("jobs", {"expires": 3_600_000})
    for name, expires in (("jobs", 100), ("sooner", 1000)):
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", "x-expires": expires})
    take.until(lambda: api("GET", f"queues/{vhost}/sooner")[0] == 404)
    assert api("GET", f"queues/{vhost}/jobs")[0] == 200
    assert api("DELETE", f"policies/{vhost}/jobs")[0] == 204
    take.until(lambda: api("GET", f"queues/{vhost}/jobs")[0] == 404)


def test_only_the_policy_with_the_highest_priority_applies(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy
) -> None:
    """If several policies match a queue, only the one with the highest priority applies. Policies for exchanges, and
    policies with keys that the queue's type does not support, are ignored.
    """
    set_policy("jo", {"max-length": 1}, priority=1)
    set_policy("job", {"max-length-bytes": 4}, priority=2)
    set_policy("jobs", {"max-length": 1}, priority=3, **{"apply-to": "exchanges"})
    # Neither quorum nor classic queues support max-age, so the policy applies to neither.
    set_policy("jobs-", {"max-length": 1, "max-age": "1D"}, priority=4)
    channel.queue_declare("jobs-1")
    for body in (b"1", b"22", b"33", b"44"):
        channel.basic_publish("", "jobs-1", body)
    assert take.bodies("jobs-1", 2) == [b"33", b"44"]


def test_a_policy_can_set_overflow_message_ttl_and_expires(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, amqp_url: str
) -> None:
    """With the key `overflow`, a policy makes a full queue reject messages. With `message-ttl`, it makes messages
    expire, and with `expires`, it makes the broker delete an unused queue.
    """
    set_policy("full", {"max-length": 0, "overflow": "reject-publish"})
    set_policy("brief", {"message-ttl": 0})
    set_policy("unused", {"expires": 50})
    for name in ("full", "brief"):
        channel.queue_declare(name)
    channel.queue_declare("unused")
    channel.confirm_delivery()
    with pytest.raises(NackError):
        channel.basic_publish("", "full", b"x")
    channel.basic_publish("", "brief", b"x")
    assert channel.basic_get("brief")[0] is None

    def gone() -> bool:
        try:
            with pika.BlockingConnection(pika.URLParameters(amqp_url)) as asking:
                # Declaring the queue passively would count as use.
                asking.channel().queue_bind("unused", "amq.fanout")
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
            return error.reply_code in (404, 541)  # 541: RabbitMQ 4.3, while the queue is being deleted
        return False

    take.until(gone)


@pytest.mark.differs_since("4.3", "what is returned with basic.nack does not count")
def test_a_policy_can_set_a_delivery_limit(channel: BlockingChannel, take: Take, set_policy: SetPolicy) -> None:
    """If a policy sets a delivery-limit of 1 for a quorum queue, the queue drops a message that is requeued twice, even
    if the queue's own x-delivery-limit is higher. Requeues by basic.nack count only up to RabbitMQ 4.2.
    """
    set_policy("jobs", {"delivery-limit": 1})
    channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 9})
    channel.basic_publish("", "jobs", b"x")
    for count in (0, 1):
        method, properties, _ = take.one("jobs", auto_ack=False)
        assert (properties.headers or {}).get("x-delivery-count", 0) == count
        channel.basic_nack(method.delivery_tag)
    take.until(lambda: depth(channel, "jobs") == 0)
    assert channel.basic_get("jobs")[0] is None


def test_a_policy_can_set_an_alternate_exchange(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, api: Api, vhost: str
) -> None:
    """A policy can set the alternate exchange of an existing exchange. After the policy is deleted, unroutable messages
    to the exchange no longer reach the alternate exchange.
    """
    channel.exchange_declare("x")
    channel.queue_declare("rest")
    channel.queue_bind("rest", "amq.fanout")
    set_policy("x", {"alternate-exchange": "amq.fanout"}, **{"apply-to": "exchanges"})
    channel.basic_publish("x", "nobody", b"1")
    assert take.one("rest")[2] == b"1"
    assert api("GET", f"exchanges/{vhost}/x")[1]["policy"] == "x"
    api("DELETE", f"policies/{vhost}/x")
    channel.basic_publish("x", "nobody", b"2")
    assert channel.basic_get("rest")[0] is None


def test_the_management_api_shows_the_policies_of_a_queue(
    channel: BlockingChannel, take: Take, set_policy: SetPolicy, api: Api, vhost: str
) -> None:
    """The management API shows a queue's policy, its operator policy and the definition that results from both. It
    also lists all policies and all operator policies.
    """
    set_policy("jobs", {"max-length": 7, "dead-letter-exchange": "x"}, priority=3)
    set_policy("job", {"max-length": 5, "expires": 100_000}, "operator-policies", **{"apply-to": "queues"})
    channel.queue_declare("jobs")
    expected = {
        "policy": "jobs",
        "operator_policy": "job",
        "effective_policy_definition": {"max-length": 5, "dead-letter-exchange": "x", "expires": 100_000},
    }

    def listed() -> bool:
        queue = api("GET", f"queues/{vhost}/jobs")[1]
        return {name: queue.get(name) for name in expected} == expected

    take.until(listed)
    policy = {
        "vhost": vhost,
        "name": "jobs",
        "pattern": "^jobs",
        "apply-to": "all",
        "definition": {"max-length": 7, "dead-letter-exchange": "x"},
        "priority": 3,
    }
    assert api("GET", f"policies/{vhost}/jobs") == (200, policy)
    assert api("GET", f"policies/{vhost}") == (200, [policy])
    assert policy in api("GET", "policies")[1]
    assert [each["name"] for each in api("GET", f"operator-policies/{vhost}")[1]] == ["job"]
    assert api("GET", f"operator-policies/{vhost}/jobs")[0] == 404
    assert api("DELETE", f"operator-policies/{vhost}/jobs")[0] == 404


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("policies", {"definition": {"max-length": 3}}, "[{key_missing,pattern}]"),
    ("operator-policies", {"pattern": "a"}, "[{key_missing,definition}]"),
    ("policies", {"pattern": "a", "definition": {}}, "no policy provided"),
    ("policies", {"pattern": 3, "definition": {"max-length": 3}}, "pattern should be a binary but was 3"),
    (
        "policies",
        {"pattern": "a", "definition": {"max-length": 3}, "priority": "7"},
        'priority should be a number, actually was <<"7">>',
    ),
    (
        "operator-policies",
        {"pattern": "a", "definition": {"max-length": 3}, "apply-to": "nothing"},
        "apply-to 'nothing' unrecognised; should be 'queues', 'exchanges' or 'all'",
    ),
    (
        "operator-policies",
        {"pattern": "a", "definition": {"overflow": "reject-publish"}},
        '[{<<"overflow">>,<<"reject-publish">>}] are not recognised policy settings',
    ),
    *(
        ("policies", {"pattern": "a", "definition": definition}, words)
        for definition, words in (
            ({"max-length": -1}, "-1 is not a valid maximum length"),
            ({"max-length": 1.5}, "1.5 is not a valid maximum length"),
            ({"max-length-bytes": "x"}, '<<"x">> is not a valid maximum length in bytes'),
            ({"message-ttl": -1}, "-1 is not a valid message TTL"),
            ({"expires": 0}, "0 is not a valid queue expiry"),
            ({"overflow": 3}, "3 is not a valid overflow value"),
            ({"dead-letter-exchange": 3}, "3 is not a valid dead letter exchange name"),
            ({"dead-letter-routing-key": 3}, "3 is not a valid dead letter routing key"),
            ({"dead-letter-strategy": "x"}, '<<"x">> is not a valid dead letter strategy'),
            ({"alternate-exchange": 3}, "3 is not a valid alternate exchange name"),
            ({"delivery-limit": -1}, "-1 is not a valid delivery limit"),
            ({"queue-mode": "x"}, '<<"x">> is not a valid queue-mode value'),
            ({"stream-max-segment-size-bytes": 3_000_000_001}, "3000000001 is not a valid segment size"),
            (
                {"max-lenth": 3, "foo": "x"},
                '[{<<"foo">>,<<"x">>},{<<"max-lenth">>,3}] are not recognised policy settings',
            ),
        )
    ),
]


@pytest.mark.differs_since("4.0", "there are more things to apply a policy to, and other settings")
def test_an_invalid_policy_is_refused(api: Api, vhost: str) -> None:
    """If an invalid policy is set over HTTP, the broker responds with status 400 and RabbitMQ's error text, and does
    not store the policy.
    """
    for kind, body, words in REFUSED:
        status, answer = api("PUT", f"{kind}/{vhost}/p", body)
        reason = html.unescape(answer["reason"])
        assert (status, reason.removeprefix("Validation failed").strip()) == (400, words)
    status, answer = api("PUT", f"policies/{vhost}/p", {"pattern": "(", "definition": {"max-length": 3}})
    assert status == 400
    assert "pattern should be regular expression but is invalid" in answer["reason"]
    assert api("GET", f"policies/{vhost}") == api("GET", f"operator-policies/{vhost}") == (200, [])


@pytest.mark.parametrize(("tag", "changes"), [("management", 401), ("policymaker", 201)])
@pytest.mark.differs_since("4.3", "404 in place of 401, for a virtual host that one has no permissions in")
def test_the_tag_policymaker_allows_setting_policies_and_the_tag_management_only_listing_them(
    api: Api, vhost: str, tag: str, changes: int
) -> None:
    """If a user has permissions in a virtual host, the tag `policymaker` allows the user to set policies there, but
    not operator policies. The tag `management` allows the user to list the policies, but not to set them.
    """
    user, body = f"{tag}-{vhost}", {"pattern": "a", "definition": {"max-length": 3}}
    api("PUT", f"users/{user}", {"password": "secret", "tags": tag})
    try:
        assert api("GET", f"policies/{vhost}", None, user, "secret")[0] == 401
        assert api("PUT", f"policies/{vhost}/p", body, user, "secret")[0] == 401
        api("PUT", f"permissions/{vhost}/{user}", {"configure": "", "write": "", "read": ""})
        assert api("PUT", f"policies/{vhost}/p", body, user, "secret")[0] == changes
        assert api("PUT", f"operator-policies/{vhost}/p", body, user, "secret")[0] == 401
        assert api("GET", f"policies/{vhost}", None, user, "secret")[0] == 200
    finally:
        api("DELETE", f"users/{user}")


def test_policies_survive_a_restart(tmp_path: Path, api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """After a restart, a durable queue still has its policy and operator policy. The policies of a deleted virtual
    host do not return, even if a virtual host with the same name is created.
    """
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        api = api_of(broker)
        for vhost in ("%2F", "v"):
            api("PUT", f"vhosts/{vhost}")
            api("PUT", f"queues/{vhost}/jobs", {"durable": True})
            api("PUT", f"policies/{vhost}/p", {"pattern": "j", "definition": {"max-length": 3}, "priority": 2})
            api("PUT", f"policies/{vhost}/gone", {"pattern": "j", "definition": {"max-length": 4}})
        stored = api("GET", "policies/%2F/p")
        api("PUT", "operator-policies/%2F/o", {"pattern": "j", "definition": {"max-length": 2}})
        assert api("DELETE", "policies/%2F/gone")[0] == 204
        assert api("DELETE", "vhosts/v")[0] == 204
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        api = api_of(broker)
        assert api("GET", "policies") == (200, [stored[1]])
        queue = api("GET", "queues/%2F/jobs")[1]
        assert (queue["policy"], queue["effective_policy_definition"]) == ("p", {"max-length": 2})
        assert api("PUT", "vhosts/v")[0] == 201
        assert api("GET", "policies/v") == (200, [])


def test_a_policy_with_an_enormous_time_to_live_does_not_prevent_confirms(
    tmp_path: Path, api_of: Callable[[EmbeddedBroker], Api]
) -> None:
    """If a policy sets a message-ttl of millions of years, the broker still writes persistent messages to disk and
    confirms them, both in the queues to which the policy applies and in others.
    """
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        policy = {"pattern": "^long", "definition": {"message-ttl": 2**63 - 1}}
        assert api_of(broker)("PUT", "policies/%2F/p", policy)[0] == 201
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for queue in ("long", "other"):
                channel.queue_declare(queue, durable=True)
                channel.basic_publish("", queue, b"x", pika.BasicProperties(delivery_mode=2))
