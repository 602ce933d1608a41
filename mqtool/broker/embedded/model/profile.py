"""Which RabbitMQ the broker behaves like: what clients can tell its versions apart by, each difference with a name."""

import sys
from enum import StrEnum
from typing import Literal, NamedTuple

from mqtool import __version__


class Like(StrEnum):
    """The names of the profiles; 4.3.5 stands for all from 4.3.0 on, which refuse what 4.3.6 takes again."""

    V3_10 = "3.10"
    V4_0 = "4.0"
    V4_2 = "4.2"
    V4_3_5 = "4.3.5"
    V4_3 = "4.3"


class Profile(NamedTuple):
    """A version of RabbitMQ. The defaults are those of 3.10.

    Attributes:
        version: the version that clients are told.
        stream_version: the version that clients of the stream protocol are told, if it is another.
        smallest_frame: the smallest `frame_max` that a client may ask for, in bytes.
        largest_message: the largest body, in bytes.
        first_choice: the protocol header that answers a client that speaks another protocol.
        delivery_limit: that of a quorum queue which sets none; None for no limit.
        first_count: whether basic.get says `x-delivery-count: 0` with the first delivery from a quorum queue.
        nack_counts: whether basic.nack and basic.recover count against the delivery limit. If not, `x-acquired-count`
            counts all deliveries, and `x-delivery-count` those that failed: basic.reject, a lost channel.
        unlimited_last: whether a quorum queue without a limit puts what a client returns behind all others.
        quorum_priorities: whether quorum queues have priorities: none, two (twice as many of the higher one), or 32.
        delayed_retry: whether quorum queues hold back what has been returned (`x-delayed-retry-type`).
        transient_queues: whether a queue may be neither durable nor exclusive.
        master_locator: whether `x-queue-master-locator` is let pass.
        lists_type: whether every queue has the argument `x-queue-type`, also if it was declared without.
        checks_queue_mode: whether `x-queue-mode` has to be `lazy` or `default`; neither does anything here.
        oldest_queue_version: the least `x-queue-version`.
        unknown_type_closes: what the declaration of an exchange of unknown type costs.
        names_access: whether a refusal says which access was refused: configure, write or read.
        passive_configures: whether a passive declaration takes the right to configure.
        trusts_deaths: whether an `x-death` that a client sends counts. If not, there are `x-last-death-…` headers too.
        global_prefetch: whether a prefetch may be that of a whole channel; if not, it is that of each consumer.
        most_wildcards: how many `#` a binding key of a topic exchange may have; None for any number.
        strict_numbers: whether a headers exchange tells an integer from a decimal or a time of the same value.
        streams_take_nacks: whether basic.nack from a stream's reader is let pass, rather than refused.
        times_out: whether any consumer may be too slow, rather than only a quorum queue's.
        returns_replies: whether a mandatory direct reply comes back when the client is gone.
        lost_commit: what a commit costs when a queue is gone to which it publishes.
        exact_body: whether a body that is too long is an error of its own.
        mirrors: whether policies can ask for mirrored queues, and only for what 3.10 knows.
        delayed_exchanges: whether there is a delayed message plugin for it.
        hides_vhosts: whether the management API does not know virtual hosts that a user may not see.
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


# The stream port has the commands of 3.13, and clients go by the version.
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
        ValueError: there is none.
    """
    if like not in list(Like):
        raise ValueError(f"cannot behave like RabbitMQ {like}, only like {', '.join(Like)}")
    return PROFILES[Like(like)]


def identity(profile: Profile) -> dict[str, str]:
    """Describe the broker. Clients go by product and version, so these are those it behaves like."""
    return {
        "cluster_name": "embedded@localhost",
        "copyright": "The mqtool founders",
        "information": f"mqtool {__version__} embedded broker: for learning, demonstrations and tests",
        "platform": f"Python {sys.version.split()[0]}",
        "product": "RabbitMQ",
        "version": profile.version,
    }
