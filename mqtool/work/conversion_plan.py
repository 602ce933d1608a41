"""Plans for queue conversions: the new type and arguments, their effects, and what prevents a conversion.

Functions that take a Management raise the same errors as Management.get().
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from mqtool import management
from mqtool.amqp.administration import Depth
from mqtool.claims import Claimed
from mqtool.delays.destinations import derived_name
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, BadData, NotFound
from mqtool.management import Management, exchange_path, path
from mqtool.management.api_client import Json, is_incomplete
from mqtool.management.overflow import overflow_of, rejects_beyond
from mqtool.management.queue_contents import unmovable
from mqtool.spelling import counted, did_you_mean, pasteable, quoted
from mqtool.topology import DELAYED, Queue
from mqtool.work.policy_losses import Counts, losses_by_converting
from mqtool.work.queue_limits import applies, policies_of, unsupported

#: The queue argument that holds the plan of a conversion, as JSON.
PLAN = "x-mqtool-convert"
QueueType = Literal["classic", "quorum", "stream"]

_ALL: frozenset[str] = frozenset({"classic", "quorum", "stream"})
#: The queue types that support each argument. Arguments that are not listed are kept for any type.
_OF_TYPE = {
    "x-queue-mode": {"classic"},
    "x-queue-version": {"classic"},
    "x-queue-master-locator": {"classic"},
    "x-max-priority": {"classic"},
    "x-message-ttl": {"classic", "quorum"},
    "x-expires": {"classic", "quorum"},
    "x-max-length": {"classic", "quorum"},
    "x-overflow": {"classic", "quorum"},
    "x-dead-letter-exchange": {"classic", "quorum"},
    "x-dead-letter-routing-key": {"classic", "quorum"},
    "x-single-active-consumer": {"classic", "quorum"},
    "x-dead-letter-strategy": {"quorum"},
    "x-delivery-limit": {"quorum"},
    "x-max-in-memory-length": {"quorum"},
    "x-max-in-memory-bytes": {"quorum"},
    "x-quorum-initial-group-size": {"quorum"},
    "x-delayed-retry-type": {"quorum"},
    "x-delayed-retry-min": {"quorum"},
    "x-delayed-retry-max": {"quorum"},
    "x-max-age": {"stream"},
    "x-stream-max-segment-size-bytes": {"stream"},
    "x-initial-cluster-size": {"stream"},
}
#: Arguments whose loss would change a queue's behaviour. Removing one requires an explicit --argument NAME:=null.
_MATTERS = {
    "x-max-priority": "{to} queues do not have this argument, and treat priorities differently",
    "x-message-ttl": "its messages expire, which those of a {to} do not",
    "x-dead-letter-exchange": "it has dead letters, which a {to} does not",
    "x-max-length": "its length is limited in messages, which that of a {to} is not",
    "x-single-active-consumer": "it has a single active consumer, which a {to} does not",
    "x-expires": "it expires, which a {to} does not",
    "x-max-age": "its messages expire by age, which those of {to} queues do not",
}
#: Policy keys that would remove messages from the queues that hold them during a conversion.
_LIMITS = {"message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit"}
#: Exchange types for which an additional binding does not change where other bindings route messages.
_PLAIN_TYPES = ("direct", "fanout", "topic", "headers", DELAYED)
#: The maximum number of messages in one batch, and of bytes that the broker may be sending to mqtool.
_AT_ONCE, _BYTES = 500, 32 << 20
#: What new arguments do to the messages that are moved back, by their times in milliseconds.
_EXPIRY = {
    "x-message-ttl": "its messages expire {} after they have been moved back",
    "x-expires": "it is deleted with its messages if it is not used for {}",
}
#: The maximum number of characters to show of what somebody else has written.
_SHOWN = 200


def beginning(text: str) -> str:
    """Return a text, or its beginning and an ellipsis if it is long."""
    return text[:_SHOWN] + "…" * (len(text) > _SHOWN)


class Definition(NamedTuple):
    """A queue's type, whether it is durable, and its arguments except x-queue-type."""

    type: str
    durable: bool
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, view: Json) -> "Definition":
        """Read the definition from a queue as the management API describes it."""
        arguments = {name: value for name, value in (view.get("arguments") or {}).items() if name != "x-queue-type"}
        return cls(view.get("type") or "classic", bool(view.get("durable")), arguments)

    def named(self, name: str) -> Queue:
        """Return the queue to declare under this name."""
        return Queue(name, self.durable, arguments={**self.arguments, "x-queue-type": self.type})


class ConversionNames(NamedTuple):
    """The queues and exchanges that a conversion declares.

    Attributes:
        held: the queue that holds the converted queue's messages, and the plan.
        meanwhile: a queue and its exchange, for messages that are published during the conversion.
        through: the exchange through which messages reach the converted queue; it takes over the queue's bindings.
        into: the exchange through which messages reach the queue that holds them.
        back: the exchange through which messages return with their routing keys.
        lock: a queue that only one connection can declare.
        trial: a queue that tests whether the broker accepts the new arguments.
    """

    held: str
    meanwhile: str
    through: str
    into: str
    back: str
    lock: str
    trial: str

    @classmethod
    def of(cls, queue: str) -> "ConversionNames":
        words = ("", ".meanwhile", ".through", ".into", ".back", ".lock", ".trial")
        return cls(*(derived_name(queue, f"mqtool-convert{word}") for word in words))


class Refusal(NamedTuple):
    """Why a queue cannot be converted, and what to do about it.

    Attributes:
        is_final: True if --force does not help.
    """

    what: str
    hint: str
    is_final: bool = True


@dataclass(frozen=True)
class ConversionPlan:
    """The plan of a conversion.

    Attributes:
        queue: the name of the queue.
        source, target: the queue's definition before and after the conversion.
        at_once: the number of messages in one batch. It must be the same for all runs: see queue_conversion.py.
    """

    queue: str
    source: Definition
    target: Definition
    at_once: int = _AT_ONCE

    @property
    def names(self) -> ConversionNames:
        return ConversionNames.of(self.queue)

    def as_text(self) -> str:
        """Return the plan as the value of a queue argument."""
        return json.dumps(asdict(self) | {"source": self.source._asdict(), "target": self.target._asdict()})

    @classmethod
    def parsed(cls, text: object) -> "Claimed[ConversionPlan]":
        """Parse the value of a queue argument, which anyone may have written; raise BadData if it is not a plan."""
        try:
            said = json.loads(text) if isinstance(text, str) else {}
            definitions = {name: _definition(**said[name]) for name in ("source", "target")}
            name, at_once = said["queue"], said["at_once"]
            if not isinstance(name, str) or type(at_once) is not int or not 0 < at_once <= _AT_ONCE:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadData(
                f"the plan of a conversion cannot be read: {beginning(repr(text))}", "was it written by a newer mqtool?"
            ) from error
        return Claimed(cls(name, **definitions, at_once=at_once))

    def redirects(self, view: Json | None) -> bool:
        """True if the plan gives the queue, or a queue that holds its messages, other dead-letter settings than it has.

        The broker checks whether the user who declares a queue may write to its dead-letter exchange. A conversion
        declares the queue with the rights of whoever continues it.

        Args:
            view: the queue as the management API describes it; None if it does not exist.
        """
        now = {} if view is None else dead_letters(Definition.of(view))
        return any(dead_letters(each) not in ({}, now) for each in (self.source, self.target))


def _definition(type: str, durable: bool, arguments: dict[str, Any]) -> Definition:  # noqa: A002
    if type not in _ALL or not isinstance(durable, bool) or not isinstance(arguments, dict):
        raise ValueError
    return Definition(type, durable, arguments)


def dead_letters(definition: Definition) -> dict[str, Any]:
    """Return the arguments that say where a queue's dead letters go."""
    names = ("x-dead-letter-exchange", "x-dead-letter-routing-key")
    return {name: definition.arguments[name] for name in names if name in definition.arguments}


class Unfinished(NamedTuple):
    """The unfinished conversions of a virtual host.

    Attributes:
        plans: the plan of each, by the name of the queue to convert.
        ignored: for each queue whose plan does not count, by its name: why.
    """

    plans: dict[str, ConversionPlan]
    ignored: dict[str, BadData]


@dataclass
class Prospect:
    """A plan, and what the user should know before it is carried out.

    Attributes:
        refusals: the reasons why it cannot be carried out.
        remarks: the changes that affect clients.
        bindings: the bindings of the queue, as the API describes them.
        messages: the number of ready messages.
    """

    plan: ConversionPlan
    refusals: list[Refusal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    bindings: list[Json] = field(default_factory=list)
    messages: int = 0


def view_of(api: Management, vhost: str, name: str) -> Json | None:
    """Return a queue as the API describes it; None if there is no such queue."""
    try:
        view: Json = api.get(path("queues", vhost, name))
    except NotFound:
        return None
    return view


def bindings_of(api: Management, vhost: str, name: str, *, exchange: bool = False) -> list[Json]:
    """Return a queue's or an exchange's bindings as the API describes them, except the one to the default exchange."""
    where = (
        exchange_path(vhost, name, "bindings", "destination") if exchange else path("queues", vhost, name, "bindings")
    )
    try:
        return [each for each in api.items(where) if each["source"]]
    except NotFound:
        return []


def unfinished(api: Management, vhost: str) -> Unfinished:
    """Find the unfinished conversions.

    Anyone who may declare some queue can give it a plan for any other queue. A plan counts only on the queue that holds
    the messages of the queue to convert: its name is made from the other name, so the same users may declare both.
    """
    found = Unfinished({}, {})
    for view in management.queues(api, vhost, ("name", "arguments")):
        if PLAN in (view.get("arguments") or {}):
            try:
                plan = _plan_of(view)
            except BadData as error:
                found.ignored[view["name"]] = error
            else:
                found.plans[plan.queue] = plan
    return found


def _plan_of(holder: Json) -> ConversionPlan:
    plan = ConversionPlan.parsed(holder["arguments"][PLAN]).proven(lambda plan: plan.names.held == holder["name"])
    if plan is None:
        raise BadData("it is for a queue whose messages are held in a queue with another name")
    return plan


def prospect(
    api: Management, vhost: str, queue: str, to: str | None, changes: Mapping[str, Any], count: Counts
) -> Prospect:
    """Find out what a conversion would do, without changing anything.

    Args:
        to: the new type; None keeps it.
        changes: arguments to set; a value of None removes the argument.
        count: counts the queue's messages now.

    Raises:
        NotFound: there is no such queue.
    """
    view = view_of(api, vhost, queue)
    if view is None:
        names = [each["name"] for each in management.queues(api, vhost, ("name",))]
        hint = did_you_mean(queue, names, "'mqtool list queues' shows them")
        raise NotFound(f"queue {queue!r} does not exist in vhost {vhost!r}", hint)
    source = Definition.of(view)
    wanted = to or source.type
    kept, dropped = {}, []
    for name, value in source.arguments.items():
        if wanted in _OF_TYPE.get(name, _ALL):
            kept[name] = value
        elif name not in changes:
            dropped.append(name)
    arguments = {name: value for name, value in {**kept, **changes}.items() if value is not None}
    target = Definition(wanted, source.durable or wanted != "classic", arguments)
    size = (view.get("message_bytes") or 0) // max(1, view.get("messages") or 0)
    plan = ConversionPlan(queue, source, target, max(1, min(_AT_ONCE, _BYTES // max(1, size))))
    depth = count(queue)
    ready = (view.get("messages_ready") or 0) if depth is None else depth.ready
    found = Prospect(plan, messages=ready, bindings=bindings_of(api, vhost, queue))
    found.refusals += _of_queue(view, plan, dropped)
    found.refusals += of_unmovable(*unmovable(view, is_current=True))
    found.refusals += _of_bindings(api, vhost, plan, found.bindings)
    found.refusals += _of_consumers(view)
    found.refusals += _of_channels(api, vhost, view, wanted)
    found.refusals += _of_publishers(view, found.bindings)
    found.refusals += beyond_limits(api, vhost, view, plan, depth)
    found.refusals += by_policies(api, vhost, plan)
    if "x-overflow" not in changes:
        found.refusals += _of_overflow(api, vhost, plan)
    found.remarks += _remarks(api, vhost, plan, dropped)
    if found.bindings and not view.get("incoming") and _rate(view):
        found.remarks.append(
            "whether clients publish to it through the default exchange cannot be known in advance "
            "(that takes management.rates_mode = detailed): if they do, it is not replaced without --force"
        )
    return found


def of_unmovable(delayed: int | None, held: int | None) -> Iterator[Refusal]:
    """Yield refusals because of messages that no consumer can get: they would be lost with the queue.

    Args:
        delayed, held: how many wait for a delayed retry, and how many dead letters the queue holds; None if not known.
    """
    if delayed:
        hint = "convert it when they are ready again; a policy with a lower delay applies only to later retries"
        yield Refusal(f"{counted(delayed)} waiting for a delayed retry would be lost", hint)
    if held:
        hint = "declare or bind the target of its dead letters, or make room there: RabbitMQ then delivers them"
        yield Refusal(f"{counted(held, 'dead letter')} that it still holds would be lost", hint)
    for number, what in ((delayed, "messages wait for a delayed retry"), (held, "dead letters it still holds")):
        if number is None:
            hint = "have the management plugin collect metrics, and try again"
            yield Refusal(f"the broker does not say how many {what}, which would be lost", hint)


def _of_queue(view: Json, plan: ConversionPlan, dropped: list[str]) -> Iterator[Refusal]:
    name, to = plan.queue, plan.target.type
    if plan.source == plan.target:
        yield Refusal(
            f"it is a {to} queue with these arguments already",
            "name another type with --to, or arguments with --argument",
        )
    if view.get("exclusive"):
        yield Refusal(
            "it is exclusive, and will be deleted when its connection closes", "change the client that declares it"
        )
    if view.get("auto_delete"):
        yield Refusal(
            "it is auto-delete, and will be deleted with its last consumer", "change the client that declares it"
        )
    if plan.source.type == "stream":
        yield Refusal(
            "it is a stream: its messages stay when they are read",
            f"copy what you need: {pasteable('receive-stream --offset first --json --queue=', name)} | mqtool send …",
        )
    if name.startswith("amq."):
        yield Refusal("names that start with 'amq.' are reserved for the broker", "clients cannot declare it anew")
    for argument in dropped:
        if argument in _MATTERS:
            why = _MATTERS[argument].format(to=to)
            yield Refusal(f"it has {argument}: {why}", f"to leave it out: --to {to} --argument {argument}:=null")
    for argument in _too_deep(plan.target):
        hint = f"to leave it out: --to {to} --argument {quoted(f'{argument}:=null')}"
        yield Refusal(_TOO_DEEP.format(argument), hint)


#: Why a queue cannot be declared with an argument that the management API shows only in part.
_TOO_DEEP = "its argument {!r} is nested too deeply to stay the same"


def _too_deep(definition: Definition) -> list[str]:
    return [argument for argument, value in definition.arguments.items() if is_incomplete(value)]


def check_depth(queue: str, wanted: Definition, *, is_gone: bool = False) -> None:
    """Raise BadData if a queue cannot get a definition again because one of its arguments is nested too deeply.

    Args:
        is_gone: the queue does not exist, so it can only be declared with the definition of its conversion.
    """
    for argument in _too_deep(wanted):
        hint = f"instead, convert it with --to {wanted.type} --argument {quoted(f'{argument}:=null')}"
        wrong = f"{queue!r} cannot become {wanted.type} again: {_TOO_DEEP.format(argument)}"
        raise BadData(wrong, None if is_gone else hint)


def _of_bindings(api: Management, vhost: str, plan: ConversionPlan, bindings: list[Json]) -> Iterator[Refusal]:
    names, to = {each["source"] for each in bindings}, plan.target.type
    kinds = {name: api.get(exchange_path(vhost, name), columns="type")["type"] for name in sorted(names)}
    for each in sorted(bindings, key=lambda each: str(each["source"])):
        name, kind = each["source"], kinds[each["source"]]
        bound = f"it is bound to {name!r}, an exchange of type {kind}"
        if kind == "x-local-random" and to != "classic":
            yield Refusal(f"{bound}, which refuses {to} queues", "only a classic queue can be bound to it")
        elif kind not in _PLAIN_TYPES:
            arguments = [f" -a {quoted(f'{key}:={json.dumps(value)}')}" for key, value in each["arguments"].items()]
            keys = [each["routing_key"]] if each["routing_key"] else []
            unbind = pasteable(f"exchange unbind{''.join(arguments)}", name, plan.queue, *keys)
            yield Refusal(
                f"{bound}: one more binding changes where messages go",
                f"unbind it first, and bind it again afterwards: {unbind}",
            )


def _of_consumers(view: Json) -> Iterator[Refusal]:
    consumers = view.get("consumer_details") or []
    for each in consumers:
        if each.get("exclusive"):
            yield Refusal(f"consumer {_client(each)} is exclusive: nobody else can consume the messages", "stop it")
    if consumers:
        named = [_client(each) for each in consumers[:5]]
        more = f" and {counted(len(consumers) - 5, 'other')}" if len(consumers) > 5 else ""
        yield Refusal(
            f"{counted(len(consumers), 'consumer')} would be cancelled: {', '.join(named)}{more}",
            "stop them, or cancel them with --force",
            is_final=False,
        )
    elif "consumer_details" not in view and (count := view.get("consumers")):  # RabbitMQ updates it periodically
        yield Refusal(f"{counted(count, 'consumer')} would be cancelled", "stop them, or use --force", is_final=False)
    elif (count := view.get("messages_unacknowledged")) and not plan_is_ours(view):
        yield Refusal(
            f"{counted(count)} {'is' if count == 1 else 'are'} unacknowledged, and would be lost",
            "wait until their clients have acknowledged them, or stop the clients",
        )


def plan_is_ours(view: Json) -> bool:
    """True if a queue was declared by a conversion, as far as its name and its arguments say."""
    return PLAN in (view.get("arguments") or {}) and view["name"].endswith(ConversionNames.of("").held)


def _client(consumer: Json) -> str:
    channel = consumer.get("channel_details") or {}
    return f"{consumer.get('consumer_tag')} of {channel.get('user', 'a user')} at {channel.get('connection_name', '?')}"


def _of_channels(api: Management, vhost: str, view: Json, to: str) -> Iterator[Refusal]:
    """Yield consumers whose channel has a channel-wide prefetch limit, which quorum queues and streams refuse."""
    if to == "classic" or not view.get("consumer_details"):
        return
    shared = {each["name"] for each in management.channels(api, vhost, ("name", "global_prefetch_count"))
              if each.get("global_prefetch_count")}  # fmt: skip
    for each in view["consumer_details"]:
        if (each.get("channel_details") or {}).get("name") in shared:
            yield Refusal(
                f"consumer {_client(each)} uses a prefetch limit for its whole channel, which {to} queues refuse",
                "have it call basic.qos with global=false",
            )


def _of_publishers(view: Json, bindings: list[Json]) -> Iterator[Refusal]:
    """Yield clients that publish through the default exchange, if the API shows them."""
    rate = _rate_through_default_exchange(view, bindings)
    if rate:
        yield Refusal(
            f"messages are published to it through the default exchange, {rate:g}/s: those published while it is "
            "replaced may be lost, even if they are mandatory and confirmed",
            "stop their publishers and wait ten seconds, since rates are averages, or accept the loss with --force",
            is_final=False,
        )


def beyond_limits(
    api: Management, vhost: str, view: Json, plan: ConversionPlan, depth: Depth | None
) -> Iterator[Refusal]:
    """Yield the limits of the new definition that the queue's messages exceed or may exceed.

    Args:
        view: the queue as the management API describes it.
        depth: its messages and consumers now; None if they are not known.
    """
    reported, target = view.get("messages_ready") or 0, plan.target
    # Unacknowledged messages are requeued if their consumers are cancelled.
    there = (reported if depth is None else depth.ready) + (view.get("messages_unacknowledged") or 0)
    for loss in losses_by_converting(api, vhost, view, there, target.type, target.arguments):
        is_unknown = loss.messages is None
        if not loss.of_queue and not (is_unknown and reported):  # then their bodies are empty
            hint = "try again in ten seconds" if is_unknown else "consume messages first, or set a higher limit"
            yield Refusal(f"as a {target.type} queue with these arguments, it {loss.why}", hint)


def by_policies(api: Management, vhost: str, plan: ConversionPlan) -> Iterator[Refusal]:
    """Yield policies that would remove messages from the queues that hold them, and limits that they may exceed."""
    target = plan.target
    policies = policies_of(api, vhost, plan.queue, target.type)
    if rejects_beyond(target.type, target.arguments, policies, "max-length-bytes") is not None:
        yield Refusal(
            "it rejects messages beyond a number of bytes (max-length-bytes): those published meanwhile may not fit",
            "limit its number of messages instead until it is converted",
        )
    holders = {plan.names.held: "quorum", plan.names.meanwhile: plan.source.type}
    for policy in _policies(api, vhost):
        limits = sorted(_LIMITS & (policy.get("definition") or {}).keys())
        limited = [name for name, kind in holders.items() if applies(policy, name, kind)]
        if limits and limited:
            yield Refusal(
                f"policy {policy['name']!r} ({', '.join(limits)}) would apply to {limited[0]!r}, which holds the "
                "messages meanwhile",
                f"give it a pattern that does not match this name, such as '^{plan.queue}$'",
            )


def _of_overflow(api: Management, vhost: str, plan: ConversionPlan) -> Iterator[Refusal]:
    """Yield a refusal if the queue rejects messages beyond a limit, but would drop them after its conversion."""
    source, target = plan.source, plan.target
    before, after = (policies_of(api, vhost, plan.queue, each.type) for each in (source, target))
    if (
        target.type != "stream"
        and overflow_of(target.type, target.arguments, after) == "drop-head"
        and any(
            rejects_beyond(source.type, source.arguments, before, limit) is not None
            and (f"x-{limit}" in target.arguments or any(limit in each for each in after))
            for limit in ("max-length", "max-length-bytes")
        )
    ):
        yield Refusal(
            f"it rejects messages beyond its limit; as a {target.type} queue, it would drop the oldest instead",
            "see x-overflow and its policies; to accept this: --argument x-overflow=drop-head",
        )


def _policies(api: Management, vhost: str) -> list[Json]:
    found: list[Json] = []
    for kind in ("policies", "operator-policies"):
        try:
            found += api.items(path(kind, vhost))
        except (AccessRefused, NotFound):  # the user lacks the tag 'policymaker'
            continue
    return found


def _remarks(api: Management, vhost: str, plan: ConversionPlan, dropped: list[str]) -> Iterator[str]:
    name, to = plan.queue, plan.target.type
    for argument in dropped:
        if argument not in _MATTERS:
            yield f"{argument} is left out: {to} queues do not have it"
    if plan.target.durable != plan.source.durable:
        yield "it becomes durable"
    if to == "stream":
        yield "a stream keeps the messages that were read, and it cannot be converted back"
    if to == "classic" != plan.source.type:
        peek = f"{pasteable('peek', name)} --where 'not delivery_mode=2'"
        yield (
            f"a restart of the broker loses its messages that are not persistent: {plan.source.type} queues keep them, "
            f"and do not count them separately; to see them: {peek}"
        )
    for argument, effect in _EXPIRY.items():
        new = plan.target.arguments.get(argument)
        if isinstance(new, int) and new != plan.source.arguments.get(argument):
            yield f"{argument}: {effect.format(compact_duration(new / 1000))}"
    yield from _of_policy(api, vhost, plan)
    yield f"clients that declare {name!r} with the old type or arguments get 406 PRECONDITION_FAILED"


def _of_policy(api: Management, vhost: str, plan: ConversionPlan) -> Iterator[str]:
    """Describe what happens to the settings that policies add."""
    to = plan.target.type
    for policy in _policies(api, vhost):
        before, after = (applies(policy, plan.queue, each.type) for each in (plan.source, plan.target))
        if before and not after:
            missing = ", ".join(unsupported(policy, to))
            why = f"{to} queues do not have {missing}" if missing else f"it is for {policy.get('apply-to')}"
            yield f"policy {policy['name']!r} no longer applies: {why}"
        elif after and not before:
            yield f"policy {policy['name']!r} now applies: {json.dumps(policy.get('definition') or {})}"
        elif after:
            without = [key for key in policy.get("definition") or {} if not _has_key(to, key)]
            if without:
                yield f"policy {policy['name']!r} loses {', '.join(without)}: {to} queues do not have it"


def _has_key(kind: str, key: str) -> bool:
    return not (key.startswith("ha-") and kind != "classic") and kind in _OF_TYPE.get(f"x-{key}", _ALL)


def _rate_through_default_exchange(view: Json, bindings: list[Json]) -> float:
    """Return the messages per second that clients publish through the default exchange, according to the API.

    Only with management.rates_mode = detailed does RabbitMQ show a queue's rates by exchange; the default is basic. A
    queue without bindings gets all its messages through the default exchange.
    """
    if not bindings:
        return _rate(view)
    by_exchange = {(each.get("exchange") or {}).get("name"): each.get("stats") for each in view.get("incoming") or []}
    return _rate({"message_stats": by_exchange.get("")})


def _rate(view: Json) -> float:
    stats = view.get("message_stats") or {}
    return float((stats.get("publish_details") or {}).get("rate") or 0)
