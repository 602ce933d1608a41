"""Plans of conversions: what would change, what clients notice, and what prevents a conversion."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

import pytest

from mqtool.amqp.administration import Depth
from mqtool.errors import AccessRefused, BadData, NotFound
from mqtool.management import Management
from mqtool.management.api_client import TOO_DEEP
from mqtool.topology import Queue
from mqtool.work.conversion_plan import (
    PLAN,
    ConversionNames,
    ConversionPlan,
    Definition,
    Prospect,
    Refusal,
    bindings_of,
    dead_letters,
    plan_is_ours,
    prospect,
    unfinished,
    view_of,
)
from tests.unit.test_queue_limits import not_counted


class FakeApi:
    """A management API with these objects, by their paths. If an object is an error, the error is raised.

    Attributes:
        columns: the columns that were asked for, by path.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects
        self.columns: dict[str, tuple[str, ...] | str] = {}

    def get(self, path: str, columns: str = "") -> Any:
        if columns:
            self.columns[unquote(path)] = columns
        found = self._objects.get(unquote(path), NotFound(path))
        if isinstance(found, Exception):
            raise found
        return found

    def items(self, path: str, _columns: Sequence[str] = ()) -> Any:
        return self.get(path)

    def pages(self, path: str, columns: Sequence[str], **_: object) -> Iterator[dict[str, Any]]:
        self.columns[unquote(path)] = tuple(columns)
        for each in self.get(path):
            yield {name: value for name, value in each.items() if name in columns}


def view(type: str = "classic", **more: Any) -> dict[str, Any]:  # noqa: A002 - its name in the API
    """The queue `jobs` as the management API describes it."""
    return {"name": "jobs", "type": type, "durable": True, "arguments": {}, **more}


def api_with(
    queue: dict[str, Any] | None = None,
    bindings: Sequence[dict[str, Any]] = (),
    policies: Any = (),
    operator: Any = (),
    **more: Any,
) -> Management:
    """A management API with the queue `jobs` in the virtual host `v`."""
    queue = view() if queue is None else queue
    objects = {
        "queues/v/jobs": queue,
        "queues/v": [queue],
        "queues/v/jobs/bindings": [{"source": ""}, *bindings],
        "policies/v": policies,
        "operator-policies/v": operator,
        "exchanges/v/logs": {"type": "topic"},
    }
    return cast(Management, FakeApi({**objects, **more}))


def found(
    to: str | None = "quorum", changes: Mapping[str, Any] = {}, depth: Depth | None = None, **api: Any
) -> Prospect:
    """What a conversion of the queue `jobs` would do."""
    return prospect(api_with(**api), "v", "jobs", to, changes, lambda _: depth)


#: What a plan says because of the new type, before anything else.
ONE_WAY = {"quorum": [], "stream": ["a stream keeps the messages that were read, and it cannot be converted back"]}
TOLD = "clients that declare 'jobs' with the old type or arguments get 406 PRECONDITION_FAILED"


def test_a_conversion_to_another_type_keeps_the_queues_arguments() -> None:
    """`queue convert` to another queue type keeps the queue's arguments, such as x-max-length, and changes only
    x-queue-type. It prints one remark: clients that still declare the queue as before receive 406
    PRECONDITION_FAILED.
    """
    it = found(queue=view(arguments={"x-queue-type": "classic", "x-max-length": 5, "app": "a"}, messages_ready=3))
    assert it.plan.queue == "jobs"
    assert it.plan.source == Definition("classic", True, {"x-max-length": 5, "app": "a"})
    assert it.plan.target == Definition("quorum", True, {"x-max-length": 5, "app": "a"})
    assert (it.refusals, it.remarks, it.bindings, it.messages) == ([], [TOLD], [], 3)
    assert it.plan.target.named("other") == Queue(
        "other", True, arguments={"x-max-length": 5, "app": "a", "x-queue-type": "quorum"}
    )


def test_a_queue_of_which_the_api_reports_only_the_name_is_treated_as_classic_and_empty() -> None:
    """If the management API reports neither the type nor the durability nor the number of messages of a queue, `queue
    convert` treats it as a transient classic queue without messages.
    """
    it = found(queue={"name": "jobs", "arguments": None, "message_bytes": None, "messages": None})
    assert it.plan.source == Definition("classic", False, {})
    assert (it.messages, it.plan.at_once) == (0, 500)
    assert it.remarks == ["it becomes durable", TOLD]


@pytest.mark.parametrize(("to", "durable"), [("classic", False), ("quorum", True), ("stream", True), (None, False)])
def test_a_transient_queue_becomes_durable_if_it_is_converted_to_a_quorum_queue_or_stream(
    to: str | None, durable: bool
) -> None:
    """`queue convert` makes a transient classic queue durable if it converts the queue to a quorum queue or a stream.
    Otherwise, the queue stays transient.
    """
    it = found(to, {"x-max-length": 7}, queue=view(durable=False))
    assert (it.plan.target.durable, it.plan.target.type) == (durable, to or "classic")
    assert ("it becomes durable" in it.remarks) is durable


@pytest.mark.parametrize(
    ("count", "size", "at_once"),
    [
        (0, 0, 500),
        (10, 10, 500),
        (1, 32 << 20, 1),
        (1, 64 << 20, 1),
        (2, 2 << 20, 32),
        (1000, 1000 * (32 << 20) // 500, 500),
        (1000, 1000 * (32 << 20) // 100, 100),
    ],
)
def test_a_batch_contains_up_to_500_messages_or_about_32_mib(count: int, size: int, at_once: int) -> None:
    """`queue convert` moves up to 500 messages in one batch. If the messages are large, it moves only as many as
    add up to about 32 MiB, but at least one.
    """
    assert found(queue=view(messages=count, message_bytes=size)).plan.at_once == at_once


def test_the_hint_for_a_missing_queue_suggests_a_similar_name() -> None:
    """If the queue that `queue convert` is to convert does not exist, the error names the queue. The hint suggests the
    existing queue with the most similar name or, if no name is similar, the command that lists the queues.
    """
    api = api_with(**{"queues/v": [{"name": "jobs"}]})
    with pytest.raises(NotFound) as missing:
        prospect(api, "v", "job", None, {}, not_counted)
    assert str(missing.value) == "queue 'job' does not exist in vhost 'v'"
    assert missing.value.hint == "did you mean 'jobs'?"
    with pytest.raises(NotFound) as missing:
        prospect(api, "v", "other", None, {}, not_counted)
    assert missing.value.hint == "'mqtool list queues' shows them"
    assert cast(Any, api).columns["queues/v"] == ("name",)
    assert view_of(api, "v", "other") is None
    assert view_of(api, "v", "jobs") == view()


# Arguments


@pytest.mark.parametrize(
    ("to", "kept"),
    [
        ("classic", "x-queue-mode x-queue-version x-queue-master-locator x-max-priority"),
        ("quorum", "x-dead-letter-strategy x-delivery-limit x-max-in-memory-length x-max-in-memory-bytes"),
        ("quorum", "x-quorum-initial-group-size x-delayed-retry-type x-delayed-retry-min x-delayed-retry-max"),
        ("stream", "x-max-age x-stream-max-segment-size-bytes x-initial-cluster-size"),
        ("classic quorum", "x-message-ttl x-expires x-max-length x-overflow x-single-active-consumer"),
        ("classic quorum", "x-dead-letter-exchange x-dead-letter-routing-key"),
        ("classic quorum stream", "x-max-length-bytes x-queue-leader-locator app"),
    ],
)
def test_an_argument_is_kept_if_the_new_type_supports_it(to: str, kept: str) -> None:
    """In its plan for the new queue, `queue convert` keeps each argument that the new queue type supports, and each
    argument that RabbitMQ does not know. The plan contains no other arguments.
    """
    for name in kept.split():
        queue = view(arguments={name: 1})
        types = [each for each in ("classic", "quorum", "stream") if found(each, queue=queue).plan.target.arguments]
        assert types == to.split(), name


def test_arguments_named_in_the_command_are_set_or_removed() -> None:
    """`--argument NAME:=VALUE` sets an argument of the converted queue, and `--argument NAME:=null` removes it."""
    queue = view(arguments={"x-max-length": 5, "x-expires": 7, "app": "a"})
    it = found(None, {"x-max-length": 6, "x-expires": None, "new": 1}, queue=queue)
    assert it.plan.target == Definition("classic", True, {"x-max-length": 6, "app": "a", "new": 1})
    assert (it.refusals, it.remarks) == ([], [TOLD])


def test_an_unsupported_argument_without_effect_on_messages_is_left_out_with_a_remark() -> None:
    """If the new queue type does not support an argument that has no effect on messages, `queue convert` leaves the
    argument out and prints a remark with its name. If the user removes the argument with `--argument NAME:=null`, no
    remark is printed.
    """
    queue = view(arguments={"x-queue-mode": "lazy", "x-queue-version": 2})
    it = found(queue=queue)
    assert it.refusals == []
    assert it.remarks == [
        "x-queue-mode is left out: quorum queues do not have it",
        "x-queue-version is left out: quorum queues do not have it",
        TOLD,
    ]
    assert found(changes={"x-queue-mode": None, "x-queue-version": None}, queue=queue).remarks == [TOLD]


@pytest.mark.parametrize(
    ("argument", "to", "why"),
    [
        ("x-max-priority", "quorum", "quorum queues do not have this argument, and treat priorities differently"),
        ("x-message-ttl", "stream", "its messages expire, which those of a stream do not"),
        ("x-dead-letter-exchange", "stream", "it has dead letters, which a stream does not"),
        ("x-max-length", "stream", "its length is limited in messages, which that of a stream is not"),
        ("x-single-active-consumer", "stream", "it has a single active consumer, which a stream does not"),
        ("x-expires", "stream", "it expires, which a stream does not"),
        ("x-max-age", "quorum", "its messages expire by age, which those of quorum queues do not"),
    ],
)
def test_an_unsupported_argument_that_affects_the_queue_must_be_removed_explicitly(
    argument: str, to: str, why: str
) -> None:
    """Some arguments, such as x-message-ttl, change what happens to a queue or its messages. If the new queue type
    does not support such an argument, `queue convert` refuses the conversion unless the user removes the argument
    with `--argument NAME:=null`.
    """
    queue = view(arguments={argument: 1})
    assert found(to, queue=queue).refusals == [
        Refusal(f"it has {argument}: {why}", f"to leave it out: --to {to} --argument {argument}:=null")
    ]
    assert found(to, queue=queue).remarks == [*ONE_WAY[to], TOLD]
    assert found(to, {argument: None}, queue=queue).refusals == []


# What prevents a conversion


def test_a_conversion_that_would_change_nothing_is_refused() -> None:
    """If a queue already has the requested type and arguments, `queue convert` refuses to convert it."""
    assert found("classic").refusals == [
        Refusal(
            "it is a classic queue with these arguments already",
            "name another type with --to, or arguments with --argument",
        )
    ]


def test_a_queue_with_an_argument_that_is_nested_too_deeply_is_not_converted() -> None:
    """mqtool does not read the innermost values of a queue argument that is nested too deeply, so it could not
    declare another queue with the same argument. `queue convert` refuses such a queue unless the user removes the
    argument with `--argument NAME:=null`.
    """
    queue = view(arguments={"x-own it": {"a": [TOO_DEEP]}})
    assert found(queue=queue).refusals == [
        Refusal(
            "its argument 'x-own it' is nested too deeply to stay the same",
            "to leave it out: --to quorum --argument 'x-own it:=null'",
        )
    ]
    assert found(changes={"x-own it": None}, queue=queue).refusals == []


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        (
            {"exclusive": True},
            "it is exclusive, and will be deleted when its connection closes",
            "change the client that declares it",
        ),
        (
            {"auto_delete": True},
            "it is auto-delete, and will be deleted with its last consumer",
            "change the client that declares it",
        ),
        (
            {"type": "stream"},
            "it is a stream: its messages stay when they are read",
            "copy what you need: mqtool receive-stream --offset first --json --queue=jobs | mqtool send …",
        ),
    ],
)
def test_exclusive_queues_auto_delete_queues_and_streams_cannot_be_converted(
    more: dict[str, Any], what: str, hint: str
) -> None:
    """`queue convert` refuses to convert exclusive queues, auto-delete queues and streams. The hint says what to do
    instead.
    """
    assert found(queue=view(**more)).refusals == [Refusal(what, hint)]


def test_a_queue_with_a_name_reserved_for_the_broker_cannot_be_converted() -> None:
    """`queue convert` refuses a queue whose name starts with `amq.`, because clients cannot declare a queue with such a
    name.
    """
    api = api_with(**{"queues/v/amq.gen-1": view(name="amq.gen-1"), "queues/v/amq.gen-1/bindings": [], "queues/v": []})
    assert prospect(api, "v", "amq.gen-1", "quorum", {}, not_counted).refusals == [
        Refusal("names that start with 'amq.' are reserved for the broker", "clients cannot declare it anew")
    ]


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers", "x-delayed-message", "x-consistent-hash"])
def test_a_queue_bound_to_a_consistent_hash_exchange_cannot_be_converted(kind: str) -> None:
    """`queue convert` refuses a queue that is bound to a consistent hash exchange. During a conversion, a second queue
    is bound to each of the queue's exchanges, and a consistent hash exchange would then distribute messages
    differently. Bindings to exchanges of the types direct, fanout, topic, headers and x-delayed-message do not prevent
    a conversion.
    """
    bindings = [{"source": "logs", "routing_key": key, "arguments": {"a": 1} if key else {}} for key in ("", "3")]
    api = api_with(bindings=bindings, **{"exchanges/v/logs": {"type": kind}})
    it = prospect(api, "v", "jobs", "quorum", {}, not_counted)
    assert it.bindings == bindings
    assert cast(Any, api).columns == {"exchanges/v/logs": "type"}
    refused = [
        Refusal(
            "it is bound to 'logs', an exchange of type x-consistent-hash: one more binding changes where messages go",
            f"unbind it first, and bind it again afterwards: mqtool exchange unbind {unbind}",
        )
        for unbind in ("logs jobs", "-a a:=1 logs jobs 3")
    ]
    assert it.refusals == (refused if kind == "x-consistent-hash" else [])


def test_a_queue_bound_to_a_local_random_exchange_stays_classic() -> None:
    """`queue convert` does not suggest to bind the queue again to an x-local-random exchange, because RabbitMQ binds
    only classic queues to it.
    """
    bindings = [{"source": "near", "routing_key": "", "arguments": {}}]
    api = api_with(bindings=bindings, **{"exchanges/v/near": {"type": "x-local-random"}})
    assert prospect(api, "v", "jobs", "quorum", {}, not_counted).refusals == [
        Refusal(
            "it is bound to 'near', an exchange of type x-local-random, which refuses quorum queues",
            "only a classic queue can be bound to it",
        )
    ]


def consumer(tag: str, *, exclusive: bool = False, channel: str = "c") -> dict[str, Any]:
    """A consumer as the management API describes it."""
    details = {"user": "ann", "connection_name": "1.2.3.4:5", "name": channel}
    return {"consumer_tag": tag, "exclusive": exclusive, "channel_details": details}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 consumer would be cancelled: t0 of ann at 1.2.3.4:5"),
        (5, f"5 consumers would be cancelled: {', '.join(f't{number} of ann at 1.2.3.4:5' for number in range(5))}"),
        (
            6,
            f"6 consumers would be cancelled: {', '.join(f't{number} of ann at 1.2.3.4:5' for number in range(5))}"
            " and 1 other",
        ),
        (
            8,
            f"8 consumers would be cancelled: {', '.join(f't{number} of ann at 1.2.3.4:5' for number in range(5))}"
            " and 3 others",
        ),
    ],
)
def test_a_queue_with_consumers_is_converted_only_with_force(count: int, text: str) -> None:
    """If a queue has consumers, `queue convert` refuses to convert it without --force, which cancels them. The error
    names the first five consumers, and says how many others there are.
    """
    consumers = [consumer(f"t{number}") for number in range(count)]
    it = found(queue=view(consumer_details=consumers), **{"channels": [], "vhosts/v/channels": []})
    assert it.refusals == [Refusal(text, "stop them, or cancel them with --force", is_final=False)]


def test_an_exclusive_consumer_prevents_a_conversion() -> None:
    """While a queue has an exclusive consumer, `queue convert` refuses to convert the queue, even with --force,
    because no other consumer can receive the messages.
    """
    it = found(queue=view(consumer_details=[{"consumer_tag": "t", "exclusive": True}]), **{"vhosts/v/channels": []})
    assert it.refusals == [
        Refusal("consumer t of a user at ? is exclusive: nobody else can consume the messages", "stop it"),
        Refusal(
            "1 consumer would be cancelled: t of a user at ?", "stop them, or cancel them with --force", is_final=False
        ),
    ]


@pytest.mark.parametrize(("count", "text"), [(1, "1 consumer"), (2, "2 consumers")])
def test_a_queue_whose_consumers_are_only_counted_is_converted_only_with_force(count: int, text: str) -> None:
    """If the management API reports how many consumers a queue has, but does not list them, `queue convert` needs
    --force. If the API lists the consumers and the list is empty, `queue convert` ignores the number, and does not need
    --force.
    """
    assert found(queue=view(consumers=count)).refusals == [
        Refusal(f"{text} would be cancelled", "stop them, or use --force", is_final=False)
    ]
    assert found(queue=view(consumers=count, consumer_details=[])).refusals == []


@pytest.mark.parametrize(("count", "text"), [(1, "1 message is"), (2, "2 messages are")])
def test_unacknowledged_messages_prevent_a_conversion(count: int, text: str) -> None:
    """`queue convert` refuses a queue with unacknowledged messages, even if the management API reports no consumer,
    because these messages would be lost.
    """
    for more in ({}, {"consumer_details": []}, {"consumers": 0}):
        assert found(queue=view(messages_unacknowledged=count, **more)).refusals == [
            Refusal(
                f"{text} unacknowledged, and would be lost",
                "wait until their clients have acknowledged them, or stop the clients",
            )
        ]
    assert found(queue=view(messages_unacknowledged=0)).refusals == []


def test_a_queue_declared_by_a_conversion_can_be_converted_despite_unacknowledged_messages() -> None:
    """`queue convert` refuses a queue with unacknowledged messages unless the queue was declared by an earlier `queue
    convert`. mqtool assumes this if the queue's name ends in `.mqtool-convert`, and the queue has the argument
    x-mqtool-convert.
    """
    ours = view(name="jobs.mqtool-convert", arguments={PLAN: "{}"}, messages_unacknowledged=5)
    assert plan_is_ours(ours)
    assert found(queue=ours).refusals == []
    assert not plan_is_ours(view(name="jobs.mqtool-convert", arguments=None))
    assert not plan_is_ours(view(arguments={PLAN: "{}"}))


@pytest.mark.parametrize("to", ["classic", "quorum", "stream"])
@pytest.mark.parametrize("channel", ["c", "other"])
def test_a_consumer_with_a_global_prefetch_limit_prevents_a_conversion_except_to_a_classic_queue(
    to: str, channel: str
) -> None:
    """Quorum queues and streams refuse a consumer whose channel has one prefetch limit for all its consumers (basic.qos
    with global=true). If a queue has such a consumer, `queue convert` refuses to convert it to a quorum queue or a
    stream. Such a consumer does not prevent a conversion to a classic queue.
    """
    channels = [{"name": channel, "global_prefetch_count": 5}, {"name": "third", "global_prefetch_count": 0}]
    queue = view(
        consumer_details=[consumer("t"), {"consumer_tag": "u", "channel_details": None}, consumer("w", channel="third")]
    )
    api = api_with(queue, **{"vhosts/v/channels": channels})
    refusals = prospect(api, "v", "jobs", to, {"new": 1}, not_counted).refusals
    final = [each for each in refusals if each.is_final]
    assert final == (
        [
            Refusal(
                f"consumer t of ann at 1.2.3.4:5 uses a prefetch limit for its whole channel, which {to} queues refuse",
                "have it call basic.qos with global=false",
            )
        ]
        if to != "classic" and channel == "c"
        else []
    )
    columns = cast(Any, api).columns
    assert columns == ({} if to == "classic" else {"vhosts/v/channels": ("name", "global_prefetch_count")})


def rate(value: float | None) -> dict[str, Any]:
    """Statistics with the rate of publishes."""
    return {"message_stats": {"publish_details": {"rate": value}}}


THROUGH_DEFAULT = (
    "messages are published to it through the default exchange, 2.5/s: those published while it is replaced may be "
    "lost, even if they are mandatory and confirmed"
)


@pytest.mark.parametrize("bound", [True, False])
def test_publishers_through_the_default_exchange_prevent_a_conversion_without_force(bound: bool) -> None:
    """If clients publish to a queue through the default exchange, `queue convert` needs --force, because messages that
    are published while the queue is replaced may be lost. If a queue has no bindings, mqtool assumes that all messages
    are published to it through the default exchange.
    """
    stats = rate(2.5)["message_stats"]
    incoming = [
        {"exchange": {"name": "logs"}, "stats": rate(9)["message_stats"]},
        {"exchange": {"name": ""}, "stats": stats},
    ]
    more = {"incoming": incoming, **rate(11.5)} if bound else rate(2.5)
    it = found(queue=view(**more), bindings=[{"source": "logs"}] if bound else [])
    assert it.refusals == [
        Refusal(
            THROUGH_DEFAULT,
            "stop their publishers and wait ten seconds, since rates are averages, or accept the loss with --force",
            is_final=False,
        )
    ]
    assert it.remarks == [TOLD]


@pytest.mark.parametrize(
    ("more", "bound", "remarked"),
    [
        (rate(2.5), True, True),
        ({**rate(2.5), "incoming": [{"exchange": {"name": "logs"}, "stats": rate(2.5)["message_stats"]}]}, True, False),
        ({**rate(2.5), "incoming": [{"exchange": None, "stats": rate(2.5)["message_stats"]}]}, True, False),
        ({"message_stats": None}, True, False),
        ({"message_stats": {"publish_details": None}}, True, False),
        (rate(0), True, False),
        (rate(None), False, False),
        ({}, False, False),
    ],
)
def test_a_remark_mentions_force_if_the_broker_does_not_report_through_which_exchanges_clients_publish(
    more: dict[str, Any], bound: bool, remarked: bool
) -> None:
    """If clients publish to a queue with bindings, and the management API does not name the exchanges through which
    they publish, `queue convert` prints a remark: the conversion needs --force if a client publishes through the
    default exchange. If no client publishes to the queue, or the API names the exchanges, this remark is not printed.
    """
    it = found(queue=view(**more), bindings=[{"source": "logs"}] if bound else [])
    remark = (
        "whether clients publish to it through the default exchange cannot be known in advance (that takes "
        "management.rates_mode = detailed): if they do, it is not replaced without --force"
    )
    assert it.refusals == []
    assert it.remarks == [TOLD, *([remark] if remarked else [])]


# Policies


def policy(name: str, pattern: str = "", to: str = "queues", **definition: Any) -> dict[str, Any]:
    """A policy as the management API describes it."""
    named = {key.replace("_", "-"): value for key, value in definition.items()}
    return {"name": name, "pattern": pattern, "apply-to": to, "definition": named, "priority": 0}


@pytest.mark.parametrize("limit", ["message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit"])
@pytest.mark.parametrize("operator", [True, False])
def test_a_policy_that_limits_the_temporary_queue_with_the_messages_prevents_a_conversion(
    limit: str, operator: bool
) -> None:
    """During a conversion, a temporary queue holds the messages. If a policy or operator policy with a limit (such as
    max-length) matches the temporary queue, `queue convert` refuses the conversion, because the limit could remove
    messages. A policy that matches only the queue to be converted does not prevent the conversion.
    """
    alone, both = policy("alone", "^jobs$", **{limit: 5}), policy("both", "^jobs", **{limit: 5}, x=1)
    it = found(**({"operator": [alone, both]} if operator else {"policies": [alone, both]}))
    assert it.refusals == [
        Refusal(
            f"policy 'both' ({limit}) would apply to 'jobs.mqtool-convert', which holds the messages meanwhile",
            "give it a pattern that does not match this name, such as '^jobs$'",
        )
    ]


def test_a_policy_that_limits_the_queue_for_messages_published_meanwhile_prevents_a_conversion() -> None:
    """During a conversion, a second temporary queue receives newly published messages. If a policy sets limits for this
    queue, `queue convert` refuses the conversion and names the limits. A policy does not prevent the conversion if it
    sets no limits, or has no definition.
    """
    policies = [
        policy("m", "meanwhile$", max_length=5, expires=6),
        policy("other", "", queue_leader_locator="balanced"),
        {"name": "none", "pattern": "", "apply-to": "queues", "definition": None},
    ]
    [refusal] = found(policies=policies).refusals
    assert refusal.what.startswith("policy 'm' (expires, max-length) would apply to 'jobs.mqtool-convert.meanwhile', ")
    assert refusal.is_final


@pytest.mark.parametrize("operator", [True, False])
@pytest.mark.parametrize("source", ["classic", "quorum"])
@pytest.mark.parametrize(
    ("given", "limited"),
    [
        (policy("p", "meanwhile$", max_length=5, ha_mode="all"), "classic"),
        (policy("p", "meanwhile$", max_length=5, queue_mode="lazy"), "classic"),
        (policy("p", "meanwhile$", "classic_queues", max_length=5), "classic"),
        (policy("p", "meanwhile$", "quorum_queues", max_length=5), "quorum"),
        (policy("p", "meanwhile$", max_length=5, delivery_limit=5), "quorum"),
        (policy("p", "meanwhile$", "streams", max_length=5), None),
    ],
    ids=["ha-mode", "queue-mode", "classic queues", "quorum queues", "delivery-limit", "streams"],
)
def test_a_policy_with_a_max_length_prevents_a_conversion_only_if_it_applies_to_the_queues_old_type(
    given: dict[str, Any], limited: str | None, source: str, operator: bool
) -> None:
    """During a conversion, a temporary queue of the queue's old type keeps newly published messages. `queue convert`
    refuses the conversion if a policy with a max-length applies to the temporary queue, which could then lose messages.
    A policy that is only for another type of queue, or has a setting that the old type does not support, does not
    prevent the conversion.
    """
    policies = {"operator" if operator else "policies": [given]}
    to = "quorum" if source == "classic" else "classic"
    refusals = found(to, queue=view(source), **policies).refusals
    named = [each for each in refusals if "apply to 'jobs.mqtool-convert.meanwhile'" in each.what]
    assert len(refusals) == len(named) == (source == limited)


@pytest.mark.parametrize("to", ["quorum_queues", "classic_queues", "streams"])
def test_a_policy_only_for_quorum_queues_or_only_for_classic_queues_can_prevent_a_conversion(to: str) -> None:
    """During the conversion of a classic queue to a quorum queue, its messages wait in a temporary quorum queue, and
    newly published messages in a temporary classic queue. `queue convert` therefore refuses the conversion if a
    policy for quorum queues, or one for classic queues, makes queues reject messages beyond a number of bytes. A
    policy for streams does not prevent the conversion.
    """
    limits = {"overflow": "reject-publish", "max-length-bytes": 5}
    converted = "it rejects messages beyond a number of bytes (max-length-bytes): those published meanwhile may not fit"
    temporary = "policy 'p' (max-length-bytes) would apply to {!r}, which holds the messages meanwhile"
    refusals = {
        "quorum_queues": [converted, temporary.format("jobs.mqtool-convert")],
        "classic_queues": [temporary.format("jobs.mqtool-convert.meanwhile")],
        "streams": [],
    }
    assert [each.what for each in found(policies=[policy("p", "", to, **limits)]).refusals] == refusals[to]


@pytest.mark.parametrize(
    ("arguments", "by_policy", "is_refused"),
    [
        ({"x-overflow": "reject-publish", "x-max-length": 5}, {"overflow": "drop-head"}, True),
        ({"x-overflow": "reject-publish-dlx", "x-max-length": 5}, {}, True),
        ({"x-overflow": "reject-publish-dlx", "x-max-length-bytes": 5}, {}, True),
        ({"x-max-length": 5}, {"overflow": "reject-publish-dlx"}, True),
        ({"x-overflow": "reject-publish", "x-max-length": 5}, {"message_ttl": 5}, False),
        ({"x-overflow": "reject-publish"}, {"overflow": "drop-head"}, False),
        ({"x-max-length": 5}, {"overflow": "drop-head"}, False),
    ],
    ids=["policy", "dlx", "dlx, in bytes", "policy with dlx", "still rejects", "without a limit", "already drops"],
)
def test_converting_a_queue_so_that_it_drops_messages_instead_of_rejecting_them_needs_x_overflow(
    arguments: dict[str, Any], by_policy: dict[str, Any], is_refused: bool
) -> None:
    """If a classic queue rejects messages beyond its limit, but as a quorum queue would drop its oldest messages
    instead, `queue convert` refuses the conversion unless the user accepts this with `--argument
    x-overflow=drop-head`. The quorum queue would drop messages if a policy overrides x-overflow, or if x-overflow is
    reject-publish-dlx, which quorum queues do not support.
    """
    asked: dict[str, Any] = {"queue": view(arguments=arguments), "policies": [policy("p", "^jobs$", **by_policy)]}
    refused = Refusal(
        "it rejects messages beyond its limit; as a quorum queue, it would drop the oldest instead",
        "see x-overflow and its policies; to accept this: --argument x-overflow=drop-head",
    )
    assert found(**asked).refusals == [refused] * is_refused
    assert found(changes={"x-overflow": "drop-head"}, **asked).refusals == []
    others = found("stream", **asked).refusals + found("classic", {"x-expires": 5}, **asked).refusals
    assert not any("would drop the oldest" in each.what for each in others)


@pytest.mark.parametrize("by", ["argument", "policy"])
def test_a_queue_that_rejects_messages_beyond_a_number_of_bytes_cannot_be_converted(by: str) -> None:
    """If arguments or a policy make a queue reject messages beyond a number of bytes (max-length-bytes with
    reject-publish), `queue convert` refuses the conversion, because there may be no room for messages that are
    published meanwhile. It also refuses the conversion if --argument would set this limit. If --argument removes
    x-overflow, the conversion is possible.
    """
    limits = {"overflow": "reject-publish", "max-length-bytes": 5}
    arguments = {f"x-{name}": value for name, value in limits.items()}
    refused = Refusal(
        "it rejects messages beyond a number of bytes (max-length-bytes): those published meanwhile may not fit",
        "limit its number of messages instead until it is converted",
    )
    if by == "policy":
        assert found(policies=[policy("p", "^jobs$", **limits)]).refusals == [refused]
        return
    assert found(queue=view(arguments=arguments)).refusals == [refused]
    assert found(changes={"x-overflow": None}, queue=view(arguments=arguments)).refusals == []
    assert found(changes=arguments).refusals == [refused]


def limited(length: int | None = None, size: int | None = None, **more: Any) -> dict[str, Any]:
    """The arguments of a queue with a limit in messages or in bytes."""
    given = {"max-length": length, "max-length-bytes": size, **more}
    return {f"x-{name}": value for name, value in given.items() if value is not None}


FULL = {"overflow": "reject-publish"}
UNCOUNTED = "max-length-bytes is 75, and the broker has counted no bytes of them so far"


@pytest.mark.parametrize(
    ("changes", "reported", "depth", "effect"),
    [
        (limited(4), {}, Depth(10, 0), "drops 6 of 10 messages: max-length is 4"),
        (limited(4), {"messages_ready": 10}, None, "drops 6 of 10 messages: max-length is 4"),
        (limited(9), {"messages_unacknowledged": 2}, Depth(8, 0), "drops 1 of 10 messages: max-length is 9"),
        (limited(4, **{"dead-letter-exchange": ""}), {}, Depth(5, 0), "dead-letters 1 of 5 messages: max-length is 4"),
        (limited(size=75), {"messages_ready": 10, "message_bytes_ready": 100}, Depth(10, 0),
         "drops about 3 of 10 messages: max-length-bytes is 75"),
        (limited(size=75), {}, Depth(10, 0), f"may drop some of 10 messages: {UNCOUNTED}"),
        (limited(4, **FULL), {}, Depth(10, 0), "rejects 6 of 10 messages: max-length is 4"),
        (limited(4, **FULL), {"arguments": limited(4, **FULL)}, Depth(5, 0),
         "rejects 1 of 5 messages: max-length is 4"),
    ],
    ids=[
        "dropped", "not counted", "unacknowledged", "dead letters", "bytes", "bytes not counted", "rejected",
        "old limit",
    ],
)  # fmt: skip
def test_a_queue_with_more_messages_than_its_new_limit_cannot_be_converted(
    changes: dict[str, Any], reported: dict[str, Any], depth: Depth | None, effect: str
) -> None:
    """If a queue has more messages than it may have after its conversion, `queue convert` refuses the conversion.
    Messages that consumers have not acknowledged count, too. The error says how many messages the new queue would drop,
    dead-letter or reject. If the broker has not yet counted the bytes of the messages, the hint is to try again.
    """
    refusals = found("quorum", changes, depth, queue=view(**reported)).refusals
    hint = "try again in ten seconds" if "may" in effect else "consume messages first, or set a higher limit"
    assert Refusal(f"as a quorum queue with these arguments, it {effect}", hint) in refusals


def test_a_policy_that_would_make_the_converted_queue_drop_messages_prevents_a_conversion() -> None:
    """If a policy for quorum queues would make a converted queue drop messages, `queue convert` refuses the conversion,
    as it does for a limit in the queue's arguments.
    """
    short = policy("p", "^jobs$", "quorum_queues", **{"max-length": 4})
    [refusal] = found(depth=Depth(10, 0), policies=[short]).refusals
    assert refusal.what == "as a quorum queue with these arguments, it drops 6 of 10 messages: max-length is 4"


@pytest.mark.parametrize(
    ("changes", "reported", "depth", "to"),
    [
        (limited(10), {}, Depth(10, 0), "quorum"),
        (limited(10, **FULL), {}, Depth(10, 0), "quorum"),
        (limited(4), {"messages_ready": 10}, Depth(0, 0), "quorum"),
        (limited(size=75), {"messages_ready": 10, "message_bytes_ready": 0}, Depth(10, 0), "quorum"),
        (limited(size=75), {}, Depth(10, 0), "stream"),
        ({}, {"arguments": limited(4)}, Depth(5, 0), "quorum"),
        ({"x-expires": 60_000}, {}, Depth(10, 0), "quorum"),
    ],
    ids=["as many", "as many with reject-publish", "consumed", "empty bodies", "stream", "same limit", "expires"],
)
def test_a_queue_whose_messages_fit_can_be_converted(
    changes: dict[str, Any], reported: dict[str, Any], depth: Depth, to: str
) -> None:
    """`queue convert` converts a queue that has no more messages than its new limit allows. It asks the broker for
    the number of messages, since the management API's number may be some seconds old. It does not compare the number
    with the limit if the queue becomes a stream, or keeps a limit beyond which it already drops its oldest messages
    (drop-head).
    """
    it = found(to, changes, depth, queue=view(**reported))
    assert (it.refusals, it.messages) == ([], depth.ready)


def test_a_remark_says_when_messages_or_the_queue_will_expire() -> None:
    """If `queue convert` sets or changes x-message-ttl or x-expires, a remark says after how long the messages or the
    queue will expire. No remark is printed about an argument that is kept or removed.
    """
    changes = {"x-message-ttl": 90_000, "x-expires": 3_600_000}
    assert found(None, changes).remarks[:-1] == [
        "x-message-ttl: its messages expire 1m30s after they have been moved back",
        "x-expires: it is deleted with its messages if it is not used for 1h",
    ]
    assert found(queue=view(arguments=changes)).remarks == [TOLD]
    assert found(None, dict.fromkeys(changes), queue=view(arguments=changes)).remarks == [TOLD]


@pytest.mark.parametrize("error", [AccessRefused("no"), NotFound("no")])
def test_a_conversion_is_checked_only_against_the_policies_that_the_user_can_read(error: Exception) -> None:
    """If the user of `queue convert` has permission to read only the policies, or only the operator policies, the
    command checks whether these prevent the conversion. If the user has permission to read neither, it does not check
    any policy.
    """
    both = [policy("both", "^jobs", max_length=5)]
    assert len(found(policies=error, operator=both).refusals) == 1
    assert len(found(policies=both, operator=error).refusals) == 1
    assert found(policies=error, operator=error).refusals == []


@pytest.mark.parametrize(
    ("given", "remark"),
    [
        (policy("p", "^jobs$", "classic_queues", app=1), "policy 'p' no longer applies: it is for classic_queues"),
        (policy("p", "^jobs$", "quorum_queues", delivery_limit=5), "policy 'p' now applies: {\"delivery-limit\": 5}"),
        (
            {"name": "p", "pattern": "^jobs$", "apply-to": "quorum_queues", "definition": None},
            "policy 'p' now applies: {}",
        ),
        ({"name": "p", "pattern": "^jobs$", "apply-to": "queues", "definition": None}, None),
        (policy("p", "^jobs$", "queues", message_ttl=5), None),
        (policy("p", "^other$", "queues", message_ttl=5), None),
    ],
)
def test_policies_that_start_or_cease_to_apply_are_named_in_remarks(given: dict[str, Any], remark: str | None) -> None:
    """`queue convert` prints a remark about each policy that applies to the queue only before its conversion, or only
    afterwards.
    """
    remarks = found(policies=[given]).remarks
    assert remark in remarks if remark is not None else remarks == [TOLD]


LOSES, CEASES = (
    "policy 'p' loses {}: {} queues do not have it",
    "policy 'p' no longer applies: {1} queues do not have {0}",
)


@pytest.mark.parametrize(
    ("to", "definition", "what", "text"),
    [
        ("quorum", {"queue-version": 2, "max-priority": 5, "max-length": 3}, "queue-version, max-priority", LOSES),
        ("stream", {"single-active-consumer": True}, "single-active-consumer", LOSES),
        ("quorum", {"ha-mode": "all", "ha-sync-mode": "automatic"}, "ha-mode, ha-sync-mode", CEASES),
        ("quorum", {"queue-mode": "lazy", "queue-version": 2}, "queue-mode", CEASES),
        ("stream", {"max-length-bytes": 5, "message-ttl": 6}, "message-ttl", CEASES),
    ],
)
def test_settings_of_a_policy_that_the_new_type_does_not_support_are_named_in_a_remark(
    to: str, definition: dict[str, Any], what: str, text: str
) -> None:
    """If a policy matches the queue before and after a conversion, but the new queue type does not support some of
    the policy's settings, a remark of `queue convert` names these settings. If such a setting prevents the whole
    policy from applying, the remark says that the policy will not apply.
    """
    assert found(to, policies=[policy("p", "^jobs$", **definition)]).remarks == [
        *ONE_WAY[to],
        text.format(what, to),
        TOLD,
    ]


def test_a_remark_says_which_messages_a_classic_queue_loses_in_a_restart() -> None:
    """If `queue convert` converts a quorum queue to a classic queue, a remark says that a restart of the broker will
    then lose messages that are not persistent. The remark contains the command that shows these messages.
    """
    remark = (
        "a restart of the broker loses its messages that are not persistent: quorum queues keep them, and do not count "
        "them separately; to see them: mqtool peek jobs --where 'not delivery_mode=2'"
    )
    assert found("classic", queue=view("quorum")).remarks == [remark, TOLD]
    assert found("classic", {"app": 1}).remarks == [TOLD]
    assert found("quorum", {"app": 1}, queue=view("quorum")).remarks == [TOLD]


def test_a_remark_says_that_a_stream_cannot_be_converted_back() -> None:
    """If `queue convert` converts a queue to a stream, a remark says that this cannot be undone, since a stream keeps
    the messages that were read.
    """
    [remark] = ONE_WAY["stream"]
    assert remark in found("stream").remarks
    assert remark not in found("quorum").remarks


# Bindings


def test_bindings_are_listed_without_the_one_to_the_default_exchange() -> None:
    """bindings_of() returns a queue's bindings except the one to the default exchange. With exchange=True, it returns
    the bindings whose destination is the exchange with the given name. If the queue or exchange does not exist, it
    returns no bindings.
    """
    objects = {
        "queues/v/jobs/bindings": [{"source": ""}, {"source": "a"}],
        "exchanges/v/jobs/bindings/destination": [{"source": "b"}],
    }
    api = cast(Management, FakeApi(objects))
    assert bindings_of(api, "v", "jobs") == [{"source": "a"}]
    assert bindings_of(api, "v", "jobs", exchange=True) == [{"source": "b"}]
    assert bindings_of(api, "v", "other") == bindings_of(api, "v", "other", exchange=True) == []


# The texts of plans

DEFINED = {"type": "classic", "durable": True, "arguments": {"x-max-length": 5}}
PLANNED = {"queue": "jobs", "source": DEFINED, "target": {**DEFINED, "type": "quorum"}, "at_once": 7}


def plan(**more: Any) -> ConversionPlan:
    """Parse a plan with some other values."""
    parsed = ConversionPlan.parsed(json.dumps({**PLANNED, **more})).proven(lambda _: True)
    assert parsed is not None
    return parsed


def test_a_plan_that_is_stored_as_json_is_read_unchanged() -> None:
    """The plan of a conversion is stored as JSON in a queue argument. Reading the argument returns the same plan."""
    arguments = {"x-max-length": 5}
    written = ConversionPlan("jobs", Definition("classic", True, arguments), Definition("quorum", True, arguments), 7)
    assert json.loads(written.as_text()) == PLANNED
    assert plan() == written
    assert ConversionPlan("jobs", written.source, written.target).at_once == 500


@pytest.mark.parametrize("at_once", [1, 500])
def test_a_stored_plan_keeps_the_size_of_its_batches(at_once: int) -> None:
    """A stored conversion plan contains how many messages `queue convert` moves in one batch, from 1 to 500.
    Reading the plan returns the same number.
    """
    assert plan(at_once=at_once).at_once == at_once


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        *(
            json.dumps({**PLANNED, **more})
            for more in (
                {"queue": 1},
                {"at_once": 0},
                {"at_once": 501},
                {"at_once": True},
                {"at_once": "5"},
                {"source": {}},
                {"source": 5},
                {"source": {**DEFINED, "type": "other"}},
                {"source": {**DEFINED, "durable": 1}},
                {"source": {**DEFINED, "arguments": []}},
                {"target": {**DEFINED, "more": 1}},
            )
        ),
        *(json.dumps({name: value for name, value in PLANNED.items() if name != left_out}) for left_out in PLANNED),
    ],
)
def test_a_stored_plan_that_cannot_be_read_raises_bad_data(text: object) -> None:
    """`queue convert` stores its plan of the conversion in a queue's argument x-mqtool-convert. If this argument
    contains something else, reading the plan raises BadData. The error shows up to 200 characters of the argument's
    value.
    """
    with pytest.raises(BadData) as refused:
        ConversionPlan.parsed(text)
    shown = repr(text)
    assert str(refused.value) == (
        f"the plan of a conversion cannot be read: {shown[:200]}{'…' if len(shown) > 200 else ''}"
    )
    assert refused.value.hint == "was it written by a newer mqtool?"


def test_the_queues_and_exchanges_of_a_conversion_are_named_after_the_queue() -> None:
    """To convert the queue `jobs`, `queue convert` declares queues and exchanges named `jobs.mqtool-convert` with
    different endings, such as `jobs.mqtool-convert.meanwhile`.
    """
    assert plan().names == ConversionNames.of("jobs")
    assert [*ConversionNames.of("jobs")] == [
        f"jobs.mqtool-convert{word}" for word in ("", ".meanwhile", ".through", ".into", ".back", ".lock", ".trial")
    ]


def holder(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "arguments": {PLAN: text}}


def test_unfinished_conversions_are_found_by_the_queues_that_hold_their_messages() -> None:
    """mqtool finds unfinished conversions by the plans that `queue convert` stores as queue arguments. A plan is valid
    only on the temporary queue that holds the messages of the queue being converted. If a plan is on any other queue,
    or mqtool cannot read it, mqtool ignores the plan, and records the reason.
    """
    text = json.dumps(PLANNED)
    queues = [
        {"name": "jobs", "arguments": {}},
        {"name": "a", "arguments": None},
        holder("jobs.mqtool-convert", text),
        holder("forged", text),
        holder("broken", "{"),
    ]
    api = cast(Management, FakeApi({"queues/v": queues}))
    it = unfinished(api, "v")
    assert it.plans == {"jobs": plan()}
    assert {name: str(error) for name, error in it.ignored.items()} == {
        "forged": "it is for a queue whose messages are held in a queue with another name",
        "broken": "the plan of a conversion cannot be read: '{'",
    }
    assert cast(Any, api).columns == {"queues/v": ("name", "arguments")}


DLX, KEY = "x-dead-letter-exchange", "x-dead-letter-routing-key"


def test_dead_letters_returns_a_queues_dead_letter_exchange_and_routing_key() -> None:
    """dead_letters() returns a queue's arguments x-dead-letter-exchange and x-dead-letter-routing-key, if any, and none
    of its other arguments.
    """
    assert dead_letters(Definition("classic", True, {DLX: "d", KEY: "k", "x-max-length": 5})) == {DLX: "d", KEY: "k"}
    assert dead_letters(Definition("classic", True, {})) == {}


@pytest.mark.parametrize(
    ("source", "target", "now", "redirected"),
    [
        ({}, {}, {}, False),
        ({}, {}, None, False),
        ({}, {}, {DLX: "d"}, False),
        ({DLX: "d"}, {DLX: "d"}, {DLX: "d"}, False),
        ({DLX: "d"}, {}, {DLX: "d"}, False),
        ({DLX: "d"}, {}, None, True),
        ({DLX: "d"}, {DLX: "other"}, {DLX: "d"}, True),
        ({DLX: "other"}, {DLX: "d"}, {DLX: "d"}, True),
        ({DLX: "d", KEY: "k"}, {}, {DLX: "d"}, True),
    ],
)
def test_redirects_is_true_for_a_plan_that_sends_dead_letters_elsewhere(
    source: dict[str, Any], target: dict[str, Any], now: dict[str, Any] | None, redirected: bool
) -> None:
    """A stored conversion plan describes a queue before and after the conversion. If either description contains a
    dead-letter exchange or routing key that the existing queue does not have, the plan redirects dead letters, and
    redirects() returns True. Without this check, anybody who can store a plan could redirect dead letters with the
    permissions of the user who resumes the conversion.
    """
    it = ConversionPlan("jobs", Definition("classic", True, source), Definition("quorum", True, target))
    assert it.redirects(None if now is None else view(arguments=now)) is redirected
