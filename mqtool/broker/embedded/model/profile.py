"""The versions of RabbitMQ that the broker can behave like: each difference that clients can see has a name."""

import sys
from enum import StrEnum
from typing import Literal, NamedTuple

from mqtool import __version__


class Like(StrEnum):
    """The names of the profiles. 4.3.5 stands for 4.3.0 to 4.3.5, which refuse transient queues that 4.3.6 accepts."""

    V3_10 = "3.10"
    V4_0 = "4.0"
    V4_2 = "4.2"
    V4_3_5 = "4.3.5"
    V4_3 = "4.3"


class Profile(NamedTuple):
    """A version of RabbitMQ. The defaults are those of 3.10.

    Attributes:
        version: the version that clients are told.
        stream_version: the version that clients of the stream protocol are told, if it is different.
        smallest_frame: the smallest `frame_max` that a client may ask for, in bytes.
        largest_message: the largest body, in bytes.
        first_choice: the protocol header sent to a client that speaks another protocol.
        delivery_limit: the default of quorum queues; None for no limit.
        first_count: whether basic.get sends `x-delivery-count: 0` with the first delivery from a quorum queue.
        nack_counts: whether basic.nack and basic.recover count against the delivery limit. If not, `x-acquired-count`
            counts all deliveries, and `x-delivery-count` those that failed: basic.reject, a lost channel.
        unlimited_last: whether a quorum queue without a limit puts requeued messages behind all others.
        quorum_priorities: whether quorum queues have priorities: none, two (twice as many of the higher one), or 32.
        delayed_retry: whether quorum queues can hold requeued messages back (`x-delayed-retry-type`).
        transient_queues: whether a queue may be neither durable nor exclusive.
        master_locator: whether `x-queue-master-locator` is accepted.
        lists_type: whether every queue has the argument `x-queue-type`, even if it was declared without.
        checks_queue_mode: whether `x-queue-mode` must be `lazy` or `default`; neither has an effect here.
        oldest_queue_version: the lowest `x-queue-version`.
        unknown_type_closes: what is closed when an exchange of an unknown type is declared.
        names_access: whether an error says which access was refused: configure, write or read.
        passive_configures: whether a passive declaration needs the permission to configure.
        trusts_deaths: whether an `x-death` header of a client is kept; else `x-last-death-…` headers are added.
        global_prefetch: whether a prefetch may be for a whole channel; if not, it is for each consumer.
        most_wildcards: how many `#` a binding key of a topic exchange may have; None for any number.
        strict_numbers: whether a headers exchange distinguishes integers, decimals and times of the same value.
        streams_take_nacks: whether a reader of a stream may send basic.nack.
        times_out: whether the consumer timeout is for all queues, rather than only for quorum queues.
        returns_replies: whether a mandatory direct reply is returned when the client is gone.
        lost_commit: what is closed when a transaction is committed that publishes to a deleted queue.
        exact_body: whether a body longer than announced has an error of its own.
        mirrors: whether policies can mirror queues; then they can set only what 3.10 knows.
        delayed_exchanges: whether there is a delayed message plugin for it.
        hides_vhosts: whether the management API answers 404 for virtual hosts that a user has no access to.
    """

    version: str = "3.10.8"
    stream_version: str = ""
    smallest_frame: int = 4096
    largest_message: int = 134_217_728
    first_choice: bytes = b"AMQP\x00\x00\x09\x01"
    delivery_limit: int | None = None
    first_count: bool = True
    nack_counts: bool = True
    unlimited_last: bool = True
    quorum_priorities: Literal["none", "two", "all"] = "none"
    delayed_retry: bool = False
    transient_queues: bool = True
    master_locator: bool = True
    lists_type: bool = False
    checks_queue_mode: bool = True
    oldest_queue_version: int = 1
    unknown_type_closes: Literal["channel", "connection"] = "connection"
    names_access: bool = False
    passive_configures: bool = False
    trusts_deaths: bool = True
    global_prefetch: bool = True
    most_wildcards: int | None = None
    strict_numbers: bool = False
    streams_take_nacks: bool = False
    times_out: bool = True
    returns_replies: bool = True
    lost_commit: Literal["nothing", "channel", "connection"] = "nothing"
    exact_body: bool = False
    mirrors: bool = True
    delayed_exchanges: bool = True
    hides_vhosts: bool = False


# The stream port has the commands of 3.13; clients choose commands by the version.
_3_10 = Profile(stream_version="3.13.7")
_4_0 = Profile(
    version="4.0.5",
    largest_message=16_777_216,
    first_choice=b"AMQP\x03\x01\x00\x00",
    delivery_limit=20,
    first_count=False,
    quorum_priorities="two",
    lists_type=True,
    unknown_type_closes="channel",
    names_access=True,
    trusts_deaths=False,
    strict_numbers=True,
    streams_take_nacks=True,
    lost_commit="channel",
    mirrors=False,
)
_4_2 = _4_0._replace(
    version="4.2.9", smallest_frame=8192, returns_replies=False, lost_commit="connection", exact_body=True
)
_4_3 = _4_2._replace(
    version="4.3.6",
    nack_counts=False,
    unlimited_last=False,
    quorum_priorities="all",
    delayed_retry=True,
    master_locator=False,
    checks_queue_mode=False,
    oldest_queue_version=2,
    passive_configures=True,
    global_prefetch=False,
    most_wildcards=2,
    times_out=False,
    delayed_exchanges=False,
    hides_vhosts=True,
)

DEFAULT = Like.V3_10

PROFILES = {
    DEFAULT: _3_10,
    Like.V4_0: _4_0,
    Like.V4_2: _4_2,
    Like.V4_3_5: _4_3._replace(version="4.3.5", transient_queues=False),
    Like.V4_3: _4_3,
}


def profile(like: str) -> Profile:
    """Return the profile of this name.

    Raises:
        ValueError: no profile has this name.
    """
    if like not in list(Like):
        raise ValueError(f"cannot behave like RabbitMQ {like}, only like {', '.join(Like)}")
    return PROFILES[Like(like)]


def identity(profile: Profile) -> dict[str, str]:
    """Return the server properties. Clients rely on product and version, so they are those of RabbitMQ."""
    return {
        "cluster_name": "embedded@localhost",
        "copyright": "The mqtool founders",
        "information": f"mqtool {__version__} embedded broker: for learning, demonstrations and tests",
        "platform": f"Python {sys.version.split()[0]}",
        "product": "RabbitMQ",
        "version": profile.version,
    }
