"""`doctor --upgrade`: find objects that a newer RabbitMQ refuses or treats differently.

Based on the release notes for RabbitMQ 3.12, 4.0 and 4.3: https://www.rabbitmq.com/release-information
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mqtool import management
from mqtool.errors import AccessRefused, UsageError
from mqtool.inspection.findings import Finding
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.topology import DELAYED


class Version(NamedTuple):
    """A version of RabbitMQ, without its patch level."""

    major: int
    minor: int

    @classmethod
    def of(cls, text: str) -> "Version":
        """Parse a version such as 4.3 or 4.3.1; raise ValueError if the text is not a version."""
        numbers = [int(number) for number in text.split(".")[:2]]
        return cls(numbers[0], numbers[1] if len(numbers) > 1 else 0)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Change(NamedTuple):
    """A finding about an object that RabbitMQ treats differently as of version `since`."""

    since: Version
    finding: Finding


class Note(NamedTuple):
    """A change in a RabbitMQ version that cannot be detected in a broker's topology."""

    since: Version
    text: str


_V3_12, _V4_0, _V4_3 = Version(3, 12), Version(4, 0), Version(4, 3)
#: The latest known version.
KNOWN = _V4_3
NOTES = (
    Note(_V4_0, "only 3.13 can be upgraded to it, with all its feature flags enabled"),
    Note(_V4_0, "messages of more than 16 MiB are refused unless max_message_size allows them; it was 128 MiB"),
    Note(_V4_0, "x-death is not read when a client publishes a dead letter again: count retries in another header"),
    Note(_V4_3, "only 4.2 can be upgraded to it, with all its feature flags enabled"),
    Note(_V4_3, "the consumer timeout does not hold for classic queues and streams"),
)

_QUEUE_COLUMNS = ("name", "vhost", "type", "durable", "exclusive", "arguments", "effective_policy_definition")
_CHANNEL_COLUMNS = ("name", "vhost", "global_prefetch_count")


def findings(api: Management, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    """Find objects that version `wanted` refuses or treats differently, in one virtual host or in all."""
    present = running(api)
    if wanted <= present:
        raise UsageError(f"the broker is RabbitMQ {present} already", "name a later version")
    looks: tuple[tuple[Iterable[Json], Callable[[Json], Iterator[Change]]], ...] = (
        (management.queues(api, vhost, _QUEUE_COLUMNS), _of_queue),
        (management.exchanges(api, vhost, ("name", "vhost", "type")), _of_exchange),
        (visible_policies(api, vhost), _of_policy),
        (management.channels(api, vhost, _CHANNEL_COLUMNS), _of_channel),
    )
    for things, changes_of in looks:
        for thing in things:
            yield from (change.finding for change in changes_of(thing) if present < change.since <= wanted)


def notes(api: Management, wanted: Version) -> Iterator[Note]:
    """Yield the notes on changes between the broker's version and `wanted`."""
    present = running(api)
    return (note for note in NOTES if present < note.since <= wanted)


def running(api: Management) -> Version:
    """Return the broker's version."""
    return Version.of(api.get("overview", columns="rabbitmq_version")["rabbitmq_version"])


def visible_policies(api: Management, vhost: str | None) -> list[Json]:
    """Return the policies; an empty list if the user may not list them."""
    try:
        return list(management.policies(api, vhost))
    except AccessRefused:  # the user lacks the tag 'policymaker'
        return []


def transient(queue: Json) -> Iterator[Finding]:
    """Report a queue that is transient and not exclusive."""
    if not queue.get("durable") and not queue.get("exclusive"):
        what = "is transient and not exclusive, which RabbitMQ 4.3 refuses"
        yield Finding.of("queue", queue, "transient", what, "declare it durable, or exclusive to its consumer")


def mirrored(policy: Json) -> Iterator[Finding]:
    """Report a policy that mirrors queues."""
    if any(key.startswith("ha-") for key in policy.get("definition") or {}):
        what = "mirrors classic queues (ha-*), which RabbitMQ 4.0 no longer supports"
        yield Finding.of("policy", policy, "mirrored", what, "use quorum queues, and delete the policy")


def _of_queue(queue: Json) -> Iterator[Change]:
    yield from (Change(_V4_3, finding) for finding in transient(queue))
    arguments = management.effective_arguments(queue)
    if queue.get("type") == "quorum" and "x-delivery-limit" not in arguments:
        fate, hint = "becomes a dead letter", "set a delivery limit if 20 is too few"
        if "x-dead-letter-exchange" not in arguments:
            fate, hint = "is lost", "set a dead-letter exchange, or a delivery limit"
        what = f"has no delivery limit: since RabbitMQ 4.0 it is 20, and a message that is returned more often {fate}"
        yield Change(_V4_0, Finding.of("queue", queue, "delivery-limit", what, hint))
    if queue.get("type") != "classic":
        return
    if arguments.get("x-queue-mode") == "lazy":
        what = "is lazy, which RabbitMQ ignores since 3.12: all classic queues keep messages on disk"
        yield Change(_V3_12, Finding.of("queue", queue, "lazy", what, "leave the queue mode out"))
    for name in _refused_arguments(queue.get("arguments") or {}):
        what = f"has the argument {name}, with which RabbitMQ 4.3 refuses to declare a classic queue"
        hint = "leave it out wherever the queue is declared"
        yield Change(_V4_3, Finding.of("queue", queue, "queue-argument", what, hint))


#: Arguments with which RabbitMQ 4.3 refuses to declare a classic queue, besides x-queue-version=1.
_REFUSED = ("x-queue-mode", "x-queue-master-locator", "x-consumer-timeout")


def _refused_arguments(arguments: Json) -> list[str]:
    found = ["x-queue-version=1"] if arguments.get("x-queue-version") == 1 else []
    return found + [name for name in arguments if name in _REFUSED]


def _of_exchange(exchange: Json) -> Iterator[Change]:
    if exchange["type"] == DELAYED:
        what = "needs the delayed message plugin, which has no release for RabbitMQ 4.3"
        hint = "let messages wait in queues, as mqtool does with --via ttl"
        yield Change(_V4_3, Finding.of("exchange", exchange, "delayed-exchange", what, hint))


def _of_policy(policy: Json) -> Iterator[Change]:
    return (Change(_V4_0, finding) for finding in mirrored(policy))


def _of_channel(channel: Json) -> Iterator[Change]:
    if channel.get("global_prefetch_count"):
        what = "has one prefetch limit for all its consumers, which RabbitMQ 4.3 refuses"
        hint = "use basic.qos with global=false: a limit for each consumer"
        yield Change(_V4_3, Finding.of("channel", channel, "global-prefetch", what, hint))
