"""`doctor --upgrade`: find objects that a newer RabbitMQ refuses or treats differently, on a broker or in a file.

Based on the release notes for RabbitMQ 3.12, 4.0, 4.1, 4.3 and 4.4 (https://www.rabbitmq.com/release-information), and
on what 4.0.5 and 4.3.6 do when they import such definitions. Functions that take a Management raise the same errors as
Management.get().
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mqtool import management
from mqtool.errors import AccessRefused, BadAnswer, UsageError
from mqtool.inspection.findings import Finding
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.management.policy_patterns import policy_matches
from mqtool.spelling import counted
from mqtool.topology import DELAYED
from mqtool.version_changes import (
    DELAYED_EXCHANGE,
    LARGE_MESSAGES,
    MIRRORED,
    MOST_WILDCARDS,
    POLICY_LOCATOR,
    TRANSIENT,
    WILDCARDS,
    refused_argument,
)


class Version(NamedTuple):
    """A version of RabbitMQ."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def of(cls, text: str) -> "Version":
        """Parse a version such as 4.3 or 4.3.1; raise ValueError if the text is not a version."""
        found = re.match(r"(\d{1,3})(?:\.(\d{1,3}))?(?:\.(\d{1,3}))?(?![\w])", text)
        if found is None:
            raise ValueError(f"{text!r} is not a version such as 4.3")
        return cls(*(int(number or 0) for number in found.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + f".{self.patch}" * bool(self.patch)


class UpgradeChange(NamedTuple):
    """A finding about an object that RabbitMQ treats differently as of version `since`.

    Attributes:
        is_refused: True if that version refuses the object, or loses it when it imports a definitions file.
        until: the first version that treats the object as before again, if any.
    """

    since: Version
    finding: Finding
    is_refused: bool = True
    until: Version | None = None

    def concerns(self, wanted: Version) -> bool:
        """True if version `wanted` treats the object differently."""
        return self.since <= wanted and (self.until is None or wanted < self.until)


class Note(NamedTuple):
    """A change in a RabbitMQ version. Whether it affects a broker cannot be seen in the broker's topology."""

    since: Version
    text: str


V3_12, V3_13 = Version(3, 12), Version(3, 13)
V4_0, V4_1, V4_3, V4_4 = Version(4, 0), Version(4, 1), Version(4, 3), Version(4, 4)
#: The latest known version.
KNOWN = V4_4
#: From this version on, transient queues that are not exclusive are accepted again.
ACCEPTS_TRANSIENT = Version(4, 3, 6)
NOTES = (
    Note(V4_0, "only 3.13 can be upgraded to it, with all its feature flags enabled"),
    Note(V4_0, f"{LARGE_MESSAGES}; it was 128 MiB"),
    Note(V4_0, "x-death is not read when a client publishes a dead letter again: count retries in another header"),
    Note(V4_3, "only 4.2 can be upgraded to it, with all its feature flags enabled"),
    Note(
        V4_3, "each consumer gets the prefetch limit that a client sets for a channel; 4.0 to 4.2 do not show who does"
    ),
    Note(V4_3, "the consumer timeout does not hold for classic queues and streams"),
    Note(
        V4_4,
        "delivery mode, priority and expiration of messages that a stream stored before 4.0 are lost, and AMQP 1.0 "
        "messages that a queue stored before 4.0 keep their sections in x-amqp-1.0-… headers",
    ),
    Note(V4_4, "OpenID Connect providers must use https, and name the issuer by which they are configured"),
    Note(V4_4, "definitions leave out bindings of exclusive queues; bindings of amq.* queues are not imported"),
)

_QUEUE_COLUMNS = ("name", "vhost", "type", "durable", "exclusive", "arguments", "effective_policy_definition")
_QUEUE_STATISTICS = ("message_stats.redeliver",)
_BINDING_COLUMNS = ("vhost", "source", "destination", "destination_type", "routing_key")

#: The default delivery limit of quorum queues from 4.0 on, and the delivery count that is close enough to report.
_LIMIT, _CLOSE = 20, 15
_CLASSIC = "classic"


def findings(api: Management, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    """Find objects that version `wanted` refuses or treats differently, in one virtual host or in all."""
    present = running(api)
    if wanted <= present:
        raise UsageError(f"the broker is RabbitMQ {present} already", "name a later version")
    topics = set()

    def of_exchange(exchange: Json) -> Iterator[UpgradeChange]:
        if exchange["type"] == "topic":
            topics.add((exchange["vhost"], exchange["name"]))
        return _of_exchange(exchange)

    def of_binding(binding: Json) -> Iterator[UpgradeChange]:
        return _of_binding(binding) if (binding["vhost"], binding["source"]) in topics else iter(())

    def of_queue(queue: Json) -> Iterator[UpgradeChange]:
        return _of_queue(queue, queue.get("effective_policy_definition") or {})

    looks: tuple[tuple[Iterable[Json], Callable[[Json], Iterator[UpgradeChange]]], ...] = (
        (management.queues(api, vhost, (*_QUEUE_COLUMNS, *_QUEUE_STATISTICS)), of_queue),
        (management.exchanges(api, vhost, ("name", "vhost", "type")), of_exchange),
        (management.bindings(api, vhost, _BINDING_COLUMNS), of_binding),
    )
    for things, changes_of in looks:
        for thing in things:
            yield from (
                change.finding for change in changes_of(thing) if present < change.since and change.concerns(wanted)
            )


def policy_findings(api: Management, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    """Find policies and operator policies that version `wanted` refuses or treats differently."""
    present = running(api)
    for operator in (False, True):
        for policy in management.policies(api, vhost, operator=operator):
            changes = _of_policy(policy)
            yield from (change.finding for change in changes if present < change.since and change.concerns(wanted))


def file_findings(document: Json, lines: Mapping[tuple[str, int], int], wanted: Version) -> Iterator[Finding]:
    """Find definitions that version `wanted` refuses or treats differently.

    Refused definitions are always found; those treated differently, only if the file comes from an older version.

    Args:
        document: a definitions file, as definitions.read_document() returns it.
        lines: the line of each definition, as definitions.lines_of() returns them.
    """
    said = document.get("rabbitmq_version") or document.get("rabbit_version")
    try:
        present = Version.of(str(said))
    except ValueError:
        present = Version(0, 0)
    topics = {(each.get("vhost"), each["name"]) for each in document.get("exchanges") or [] if is_topic(each)}
    defaults = default_queue_types(document)

    def of_queue(queue: Json) -> Iterator[UpgradeChange]:
        applied = applied_policy(document, "queues", queue) or {}
        yield from _of_queue({"type": type_of(queue), **queue}, applied.get("definition") or {})
        yield from _of_type(queue, defaults.get(queue.get("vhost")))

    def of_binding(binding: Json) -> Iterator[UpgradeChange]:
        source = (binding.get("vhost"), binding["source"])
        if source in topics or binding["source"] == "amq.topic":
            yield from _of_binding(binding)
        if wanted < V4_4 and is_of_reserved_queue(binding):
            what = "is of a queue that an import skips: RabbitMQ 4.0 to 4.3 refuse the file"
            finding = Finding("reserved-queue", _described(binding), what, "leave the binding out", binding["vhost"])
            yield UpgradeChange(V4_0, finding)

    looks: tuple[tuple[str, Callable[[Json], Iterator[UpgradeChange]]], ...] = (
        ("queues", of_queue),
        ("exchanges", _of_exchange),
        ("policies", _of_policy),
        ("parameters", _of_parameter),
        ("bindings", of_binding),
    )
    for section, changes_of in looks:
        for number, thing in enumerate(document.get(section) or []):
            for change in changes_of({"vhost": None, **thing}):
                if change.concerns(wanted) and (change.is_refused or present < change.since):
                    yield replace(change.finding, line=lines.get((section, number)))


def notes(api: Management, wanted: Version) -> Iterator[Note]:
    """Yield the notes on changes between the broker's version and `wanted`."""
    present = running(api)
    return (note for note in NOTES if present < note.since <= wanted)


def running(api: Management) -> Version:
    """Return the broker's version."""
    text = api.get("overview", columns="rabbitmq_version")["rabbitmq_version"]
    try:
        return Version.of(text)
    except ValueError as error:
        raise BadAnswer(f"the management API says that the broker's version is {text[:20]!r}") from error


def visible_policies(api: Management, vhost: str | None) -> list[Json]:
    """Return the policies; an empty list if the user may not list them."""
    try:
        return list(management.policies(api, vhost))
    except AccessRefused:  # the user lacks the tag 'policymaker'
        return []


def message_findings(queue: Json, headers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check the headers of messages from a queue on an older version; report what RabbitMQ 4.0 does differently."""
    returned = max((_number(each.get("x-delivery-count")) for each in headers), default=0)
    if returned >= _CLOSE:
        what = f"has a message that was returned {returned} times: since RabbitMQ 4.0, the default limit is {_LIMIT}"
        hint = "find out why it is returned, and set a delivery limit and a dead-letter exchange"
        yield Finding.of("queue", queue, "delivery-count", what, hint)
    deaths = max((_number(each["count"]) for message in headers for each in _deaths(message)), default=0)
    if deaths > 1:
        what = f"has a message whose x-death counts {deaths:,}: since RabbitMQ 4.0, it starts again at 1"
        what += " when a client publishes the message again"
        hint = "have clients that publish dead letters again count in a header of their own, or reject messages instead"
        yield Finding.of("queue", queue, "x-death", what, hint)


def _deaths(headers: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    deaths = headers.get("x-death")
    yield from (
        (each for each in deaths if isinstance(each, dict) and "count" in each) if isinstance(deaths, list) else ()
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def type_of(queue: Json) -> str:
    """Return the type of a queue in a definitions file."""
    return str(queue.get("type") or (queue.get("arguments") or {}).get("x-queue-type") or _CLASSIC)


def default_queue_types(document: Json) -> dict[str | None, str]:
    """Return the default queue types of the virtual hosts in a definitions file that have one."""
    found: dict[str | None, str] = {}
    for vhost in document.get("vhosts") or []:
        said = vhost.get("default_queue_type") or (vhost.get("metadata") or {}).get("default_queue_type")
        if said and said != "undefined":
            found[vhost["name"]] = str(said)
    return found


def applied_policy(document: Json, section: str, item: Json) -> Json | None:
    """Return the policy in a definitions file that applies to one of its queues or exchanges, if any."""
    kinds = ["all", section]
    if section == "queues":
        kind = type_of(item)
        kinds.append("streams" if kind == "stream" else f"{kind}_queues")
    found: Json | None = None
    for policy in document.get("policies") or []:
        if policy.get("vhost") == item.get("vhost") and policy.get("apply-to", "all") in kinds:
            is_higher = found is None or (policy.get("priority") or 0) > (found.get("priority") or 0)
            if is_higher and policy_matches(policy, item["name"]):
                found = policy
    return found


def is_topic(exchange: Json) -> bool:
    """True if an exchange in a definitions file is a topic exchange."""
    return bool(exchange.get("type") == "topic")


def is_of_reserved_queue(binding: Json) -> bool:
    """True if a binding in a definitions file is of a queue named `amq.…`, which RabbitMQ never imports."""
    return binding.get("destination_type") == "queue" and str(binding.get("destination")).startswith("amq.")


def transient(queue: Json) -> Iterator[Finding]:
    """Report a queue that is transient and not exclusive."""
    if not queue.get("durable", True) and not queue.get("exclusive"):
        what = f"is transient and not exclusive, {TRANSIENT.verdict}"
        yield Finding.of("queue", queue, "transient", what, "declare it durable, or exclusive to its consumer")


def mirrored(policy: Json) -> Iterator[Finding]:
    """Report a policy that mirrors queues."""
    if any(key.startswith("ha-") for key in policy.get("definition") or {}):
        what = f"mirrors classic queues (ha-*), {MIRRORED.verdict}"
        yield Finding.of("policy", policy, "mirrored", what, "use quorum queues, and delete the policy")


def refused_arguments(queue: Json) -> Iterator[tuple[str, str]]:
    """Yield a queue's arguments that RabbitMQ 4.3 refuses: each name, and its value if another value is accepted."""
    kind = type_of(queue)
    for name, value in (queue.get("arguments") or {}).items():
        if (refused := refused_argument(kind, name, value)) is not None:
            yield name, refused


def _of_queue(queue: Json, policy: Mapping[str, Any]) -> Iterator[UpgradeChange]:
    yield from (UpgradeChange(V4_3, finding, until=ACCEPTS_TRANSIENT) for finding in transient(queue))
    arguments = management.with_policy(queue.get("arguments") or {}, policy)
    if queue.get("type") == "quorum" and "x-delivery-limit" not in arguments:
        fate, hint = "becomes a dead letter", "set a delivery limit if 20 is too few"
        if "x-dead-letter-exchange" not in arguments:
            fate, hint = "is lost", "set a dead-letter exchange, or a delivery limit"
        what = f"has no delivery limit: since RabbitMQ 4.0 it is 20, and a message that is returned more often {fate}"
        if returned := (queue.get("message_stats") or {}).get("redeliver"):
            what += f" ({counted(returned)} redelivered so far)"
        yield UpgradeChange(V4_0, Finding.of("queue", queue, "delivery-limit", what, hint), is_refused=False)
    if queue.get("type") == _CLASSIC and arguments.get("x-queue-mode") == "lazy":
        what = "is lazy, which RabbitMQ ignores since 3.12: all classic queues keep messages on disk"
        finding = Finding.of("queue", queue, "lazy", what, "leave the queue mode out")
        yield UpgradeChange(V3_12, finding, is_refused=False)
    for _, refused in refused_arguments(queue):
        what = f"has the argument {refused}"
        hint = "leave it out wherever the queue is declared"
        yield UpgradeChange(V4_3, Finding.of("queue", queue, "queue-argument", what, hint))


def _of_type(queue: Json, default: str | None) -> Iterator[UpgradeChange]:
    """Report a queue in a file if an import would change its type to its virtual host's default."""
    kind = type_of(queue)
    if "x-queue-type" not in (queue.get("arguments") or {}) and kind != (default or _CLASSIC):
        what = f"is a {kind} queue, and becomes a {default or _CLASSIC} queue when RabbitMQ imports the file"
        hint = f'add "x-queue-type": "{kind}" to its arguments'
        yield UpgradeChange(V4_0, Finding.of("queue", queue, "queue-type", what, hint))


def _of_exchange(exchange: Json) -> Iterator[UpgradeChange]:
    if exchange.get("type") == DELAYED:
        what = f"needs {DELAYED_EXCHANGE.verdict}"
        hint = "let messages wait in queues: mqtool delayed migrate, mqtool delayed relay"
        yield UpgradeChange(V4_3, Finding.of("exchange", exchange, "delayed-exchange", what, hint))


def _of_policy(policy: Json) -> Iterator[UpgradeChange]:
    yield from (UpgradeChange(V4_0, finding) for finding in mirrored(policy))
    if "queue-master-locator" in (policy.get("definition") or {}):
        what = f"sets queue-master-locator, {POLICY_LOCATOR.verdict}"
        hint = "set queue-leader-locator to balanced or client-local"
        yield UpgradeChange(V4_3, Finding.of("policy", policy, "policy-setting", what, hint))


def _of_parameter(parameter: Json) -> Iterator[UpgradeChange]:
    """Report operator policies, which definitions files list as parameters."""
    if parameter.get("component") == "operator_policy":
        yield from _of_policy({**parameter, **parameter["value"]})


def _of_binding(binding: Json) -> Iterator[UpgradeChange]:
    count = (binding.get("routing_key") or "").split(".").count("#")
    if count > MOST_WILDCARDS:
        what = f"has {count} # in its key, {WILDCARDS.verdict}"
        finding = Finding("binding-key", _described(binding), what, "bind with simpler keys", binding["vhost"])
        yield UpgradeChange(V4_3, finding)


def _described(binding: Json) -> str:
    return f"binding {binding.get('routing_key')!r} from {binding['source']!r} to {binding['destination']!r}"
