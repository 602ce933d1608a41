"""Profiles: the versions of RabbitMQ that the broker can imitate, and the differences that clients can see."""

import sys
from enum import StrEnum
from typing import Literal, NamedTuple

from mqtool import __version__


class Like(StrEnum):
    """The names of the profiles. 4.3 means 4.3.6; 4.3.5 means 4.3.0 to 4.3.5, which refuse transient queues.

    The newest one is the last.
    """

    V3_10 = "3.10"
    V4_0 = "4.0"
    V4_2 = "4.2"
    V4_3 = "4.3"
    V4_3_5 = "4.3.5"
    V4_4 = "4.4"


class Profile(NamedTuple):
    """The behaviour of one version of RabbitMQ. The defaults are those of 3.10.

    Attributes:
        version: the version reported to clients.
        stream_version: the version reported to clients of the stream protocol; empty if it is the same.
        smallest_frame: the smallest `frame_max` that a client may request, in bytes.
        largest_message: the largest message body allowed, in bytes.
        largest_publish: the largest publish frame of the stream protocol, in bytes.
        first_choice: the protocol header sent to a client whose protocol header is not supported.
        delivery_limit: the default delivery limit of quorum queues; None for no limit.
        first_count: True if basic.get sends `x-delivery-count: 0` with the first delivery from a quorum queue.
        nack_counts: True if basic.nack and basic.recover count against the delivery limit. If not, `x-acquired-count`
            counts all deliveries, and `x-delivery-count` only failed ones (basic.reject, a lost channel).
        unlimited_last: True if a quorum queue without a delivery limit puts messages that a client requeues behind all
            others.
        quorum_priorities: the priorities of quorum queues: `none`, `two` (delivered at a ratio of 2:1), or `all` 32.
        policy_expires: True if a policy's `expires` overrides that of a quorum queue. If not, the lower value applies.
        delayed_retry: True if quorum queues can hold requeued messages back (`x-delayed-retry-type`).
        purges_dead_letters: True if a purge removes the dead letters that an at-least-once quorum queue still holds.
        transient_queues: True if a queue may be neither durable nor exclusive.
        master_locator: True if `x-queue-master-locator` is accepted.
        lists_type: True if every queue has the argument `x-queue-type`, even if it was declared without one.
        keeps_queue_type: True if a virtual host keeps its default queue type in a PUT request that does not contain it.
        checks_queue_mode: True if `x-queue-mode` must be `lazy` or `default`. The mode has no effect in this broker.
        oldest_queue_version: the lowest `x-queue-version` accepted.
        unknown_type_closes: what is closed if a client declares an exchange of unknown type: `channel` or `connection`.
        names_access: True if an error names the permission that is missing: configure, write or read.
        checks_copies: True if topic permissions also apply to the routing keys in CC and BCC (from RabbitMQ 4.0.3 on).
        reads_offsets: True if a client that stores an offset needs the right to read the stream (from RabbitMQ 3.13
            on), False if it needs the right to write to it.
        hides_streams: True if Metadata, Partitions and Route of the stream protocol need rights to what they name (from
            RabbitMQ 4.2.9 on).
        limits_streams: True if `max-queues` of a virtual host applies to Create of the stream protocol (from RabbitMQ
            3.13 on).
        limits_stream_clients: True if `max-connections` applies to clients of the stream protocol (from RabbitMQ 4.2.7
            on).
        passive_configures: True if a passive declaration needs a permission: configure, write or read.
        trusts_deaths: True if dead-lettering keeps an `x-death` header sent by a client. If not, the header is
            replaced, `x-last-death-…` headers are added, and CC stays if the message gets a new routing key.
        sorts_headers: True if the headers of a published message are sorted, without duplicates, and encoded again. If
            not, they stay as they are until the broker adds some.
        global_prefetch: True if a prefetch count can apply to a whole channel rather than to each consumer.
        most_wildcards: the maximum number of `#` in a binding key of a topic exchange; None for no limit.
        strict_numbers: True if a headers exchange distinguishes integers, decimals and timestamps of equal value.
        streams_take_nacks: True if a consumer of a stream may send basic.nack.
        consumer_timeouts: the consumer timeouts that exist: `broker` (one for all queues), `queues` (also of queues, by
            argument or policy), or `quorum` (of quorum queues only, and also of consumers).
        returns_replies: True if a mandatory direct reply is returned to its publisher when the recipient is gone.
        lost_commit: what the broker closes if a queue is deleted before a message for it is committed (tx.commit).
        exact_body: True if a body longer than its content header announces is reported with a specific error text.
        mirrors: True if policies can mirror queues. Policies then accept only the settings of 3.10.
        delayed_exchanges: True if the delayed message plugin is available for this version.
        local_random: True if there are exchanges of type `x-local-random`.
        hides_vhosts: True if the management API returns 404 for virtual hosts that a user has no access to.
        speaks_amqp10: True if clients may use AMQP 1.0, and streams store messages by the tables of RabbitMQ 4.
        detaches_links: True if an error of an AMQP 1.0 link only detaches the link, and if clients may request dynamic
            sources. If not, such an error ends the session.
        tells_active: True if the broker tells AMQP 1.0 consumers of quorum queues whether they are the active ones.
        filters_messages: True if AMQP 1.0 consumers of streams can filter messages by properties or with SQL.
        restores_basic: True if the annotations `x-basic-delivery-mode`, `-priority` and `-expiration`, which streams of
            3.13 and earlier contain, become properties again.
        assumes_durable: True if an AMQP 1.0 message whose header does not say whether it is durable is persistent.
        counts_failures: True if a classic queue counts the deliveries that an AMQP 1.0 client declares to have failed.
        classic_locator: True if a classic queue may have the argument `x-queue-leader-locator`.
        refuses_loose: the bindings in a definitions file that let its import fail because their queue or exchange does
            not exist: `none`, `all`, or `named` (all but those of queues whose names begin with `amq.`).
        initial_offsets: True if the argument `x-stream-initial-offset` sets the offset of a stream's first message.
        names_endpoint: True if Prometheus metrics name their endpoint and the types of queues (from RabbitMQ 4.1 on).
        explains_rejections: True if the AMQP 1.0 outcome `rejected` names the queue and the reason.
        api: the first version with the paths, statuses and fields of the management API.
        addresses_replies: True if reply-to is converted between the name of a queue and its AMQP 1.0 address.
    """

    version: str = "3.10.8"
    stream_version: str = ""
    smallest_frame: int = 4096
    largest_message: int = 134_217_728
    largest_publish: int = 67_108_864
    first_choice: bytes = b"AMQP\x00\x00\x09\x01"
    delivery_limit: int | None = None
    first_count: bool = True
    nack_counts: bool = True
    unlimited_last: bool = True
    quorum_priorities: Literal["none", "two", "all"] = "none"
    policy_expires: bool = True
    delayed_retry: bool = False
    purges_dead_letters: bool = False
    transient_queues: bool = True
    master_locator: bool = True
    lists_type: bool = False
    keeps_queue_type: bool = True
    checks_queue_mode: bool = True
    oldest_queue_version: int = 1
    unknown_type_closes: Literal["channel", "connection"] = "connection"
    names_access: bool = False
    checks_copies: bool = False
    reads_offsets: bool = False
    hides_streams: bool = False
    limits_streams: bool = False
    limits_stream_clients: bool = False
    passive_configures: bool = False
    trusts_deaths: bool = True
    sorts_headers: bool = False
    global_prefetch: bool = True
    most_wildcards: int | None = None
    strict_numbers: bool = False
    streams_take_nacks: bool = False
    consumer_timeouts: Literal["broker", "queues", "quorum"] = "broker"
    returns_replies: bool = True
    lost_commit: Literal["nothing", "channel", "connection"] = "nothing"
    exact_body: bool = False
    mirrors: bool = True
    delayed_exchanges: bool = True
    local_random: bool = False
    hides_vhosts: bool = False
    speaks_amqp10: bool = False
    detaches_links: bool = False
    tells_active: bool = False
    filters_messages: bool = False
    addresses_replies: bool = False
    restores_basic: bool = True
    assumes_durable: bool = False
    counts_failures: bool = False
    classic_locator: bool = False
    refuses_loose: Literal["none", "all", "named"] = "none"
    initial_offsets: bool = False
    names_endpoint: bool = False
    explains_rejections: bool = False
    api: Literal["3", "4.0", "4.2", "4.3"] = "3"


# The stream listener supports the commands of 3.13, and clients choose commands by the server's version.
_3_10 = Profile(stream_version="3.13.7")
_4_0 = Profile(
    version="4.0.5",
    largest_message=16_777_216,
    first_choice=b"AMQP\x03\x01\x00\x00",
    delivery_limit=20,
    first_count=False,
    quorum_priorities="two",
    policy_expires=False,
    lists_type=True,
    unknown_type_closes="channel",
    names_access=True,
    checks_copies=True,
    reads_offsets=True,
    limits_streams=True,
    trusts_deaths=False,
    sorts_headers=True,
    consumer_timeouts="queues",
    classic_locator=True,
    refuses_loose="all",
    strict_numbers=True,
    streams_take_nacks=True,
    lost_commit="channel",
    mirrors=False,
    local_random=True,
    speaks_amqp10=True,
    api="4.0",
    assumes_durable=True,
)
_4_2 = _4_0._replace(
    version="4.2.9",
    smallest_frame=8192,
    keeps_queue_type=False,
    returns_replies=False,
    lost_commit="connection",
    exact_body=True,
    hides_streams=True,
    limits_stream_clients=True,
    detaches_links=True,
    api="4.2",
    filters_messages=True,
    addresses_replies=True,
    assumes_durable=False,
    names_endpoint=True,
)
_4_3 = _4_2._replace(
    version="4.3.6",
    largest_publish=1_048_576,
    tells_active=True,
    nack_counts=False,
    unlimited_last=False,
    quorum_priorities="all",
    delayed_retry=True,
    purges_dead_letters=True,
    master_locator=False,
    checks_queue_mode=False,
    oldest_queue_version=2,
    passive_configures=True,
    global_prefetch=False,
    most_wildcards=2,
    consumer_timeouts="quorum",
    counts_failures=True,
    delayed_exchanges=False,
    hides_vhosts=True,
    explains_rejections=True,
    api="4.3",
)
# From its release notes: no package of 4.4 was at hand to ask.
_4_4 = _4_3._replace(version="4.4.1", restores_basic=False, refuses_loose="named", initial_offsets=True)

#: The version for `broker up` with every kind of broker (docker-compose.yml starts it too), for plays and for tests: it
#: speaks AMQP 1.0, and still has what older tutorials use, which 4.3 refuses: transient queues and a global prefetch.
DEFAULT = Like.V4_2

PROFILES = {
    Like.V3_10: _3_10,
    Like.V4_0: _4_0,
    Like.V4_2: _4_2,
    Like.V4_3_5: _4_3._replace(version="4.3.5", transient_queues=False),
    Like.V4_3: _4_3,
    Like.V4_4: _4_4,
}


def profile(like: str) -> Profile:
    """Return the profile with this name; raise ValueError if there is none."""
    if like not in list(Like):
        raise ValueError(f"cannot behave like RabbitMQ {like}, only like {', '.join(Like)}")
    return PROFILES[Like(like)]


def identity(profile: Profile, cluster_name: str) -> dict[str, str]:
    """Return the server properties sent to clients. They name RabbitMQ and its version, because clients check these."""
    return {
        "cluster_name": cluster_name,
        "copyright": "The mqtool founders",
        "information": f"mqtool {__version__} embedded broker: for learning, demonstrations and tests",
        "platform": f"Python {sys.version.split()[0]}",
        "product": "RabbitMQ",
        "version": profile.version,
    }
