"""Which problems `doctor` and `top` report, and what they do not report."""

from collections.abc import Iterator
from typing import cast

import pytest

from mqtool.amqp import parse_addresses
from mqtool.cli.access import Access, TlsFiles
from mqtool.cli.commands.doctor import _hurried
from mqtool.cli.display import reports
from mqtool.inspection.diagnosis import (
    Paths,
    dropped,
    forgets_to_acknowledge,
    has_no_consumer,
    hidden_queues,
    stands_still,
    surplus,
)
from mqtool.inspection.findings import Finding, Unchecked, grouped, said, worst_first
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.topology import Binding, Queue


def queue(ready: int = 0, unacked: int = 0, consumers: int = 0, **stats: int) -> Json:
    return {
        "name": "jobs",
        "vhost": "/",
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
        "consumers": consumers,
        "message_stats": stats,
    }


def test_messages_without_a_consumer_are_reported() -> None:
    """`doctor` reports a queue with messages and no consumer, unless it is a dead-letter queue, a wait queue or a
    stream.
    """
    assert has_no_consumer(queue(ready=1))
    assert not has_no_consumer(queue(ready=1, consumers=1))
    assert not has_no_consumer(queue())
    assert not has_no_consumer({**queue(ready=1), "name": "jobs.dlq"})
    assert not has_no_consumer({**queue(ready=1), "type": "stream"})
    waits = {"x-message-ttl": 1000, "x-dead-letter-exchange": ""}
    assert not has_no_consumer({**queue(ready=1), "arguments": waits})
    assert has_no_consumer({"name": "new", "vhost": "/", "messages_ready": 1})


def test_consumers_that_never_acknowledge_are_reported() -> None:
    """`doctor` reports a queue whose consumers acknowledge nothing if the queue has more unacknowledged messages than
    consumers. If there is at most one unacknowledged message for each consumer, the consumers may be busy with long
    tasks: `doctor` then reports the queue only if the number of unacknowledged messages has grown between two
    measurements.
    """
    assert forgets_to_acknowledge(queue(unacked=5, consumers=1))
    assert not forgets_to_acknowledge(queue(unacked=2, consumers=2))
    assert not forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=1))
    assert forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=1), queue(unacked=5, consumers=1, ack=1))
    assert forgets_to_acknowledge(queue(unacked=2, consumers=2), queue(unacked=1, consumers=2))
    assert not forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=2), queue(unacked=5, consumers=1, ack=1))
    assert not forgets_to_acknowledge(queue(ack=1), queue(unacked=5, ack=1))


def test_dropped_messages_are_counted() -> None:
    """`doctor` counts a message as dropped if it was published to a queue and is no longer there, but was neither
    acknowledged nor delivered with automatic acknowledgement. If a restart has reset the counters, so that they show
    more messages acknowledged than published, `doctor` counts none as dropped.
    """
    assert dropped(queue(ready=2, unacked=1, publish=10, ack=3, deliver_no_ack=1, get_no_ack=1)) == 2
    assert dropped(queue(ready=7, publish=10, ack=3)) == 0
    assert dropped(queue(ack=5)) == 0


def test_a_classic_queue_that_would_lose_messages_at_a_restart_is_reported() -> None:
    """`doctor` reports a durable classic queue with the overflow behaviour reject-publish if it contains more
    messages or bytes than its limit: RabbitMQ drops or dead-letters the surplus when it restarts. If an argument and
    a policy set the limit, the lower value applies. Unacknowledged messages count towards the limit.
    """

    def said(overflow: str = "reject-publish", policy: Json | None = None, **more: object) -> list[str]:
        there = {**queue(4, 2), "message_bytes": 60, "type": "classic", "durable": True}
        given = {"arguments": {"x-overflow": overflow}, "effective_policy_definition": policy}
        return [found.what for found in surplus({**there, **given, **more})]

    five, drops = {"max-length": 5}, "RabbitMQ drops the surplus when it restarts"
    assert said(policy=five) == [f"has 6 messages, and max-length is 5: {drops}"]
    assert said(policy={"max-length": 5, "max-length-bytes": 1}) == said(policy=five)
    assert said(policy={"max-length": 6, "max-length-bytes": 59}) == [
        f"has 60 bytes, and max-length-bytes is 59: {drops}"
    ]
    own = {"x-overflow": "reject-publish-dlx", "x-max-length": 9, "x-dead-letter-exchange": ""}
    assert said(policy=five, arguments=own) == [
        "has 6 messages, and max-length is 5: RabbitMQ dead-letters the surplus when it restarts, "
        "but quorum queues may not get it"
    ]
    assert said(policy={**five, "overflow": "reject-publish"}, arguments={}) == said(policy=five)
    assert said(policy={"max-length": 6, "max-length-bytes": 60}) == said() == []
    assert said(policy=five, arguments={"x-overflow": "reject-publish", "x-max-length": 3}) == [
        f"has 6 messages, and max-length is 3: {drops}"
    ]
    assert said("drop-head", {**five, "overflow": "reject-publish"}) == []
    assert (
        said(policy=five, type="quorum") == said(policy=five, durable=False) == said(policy=five, exclusive=True) == []
    )
    assert said(policy={"max-length-bytes": 5}, message_bytes=None) == []


def test_a_queue_whose_consumers_make_no_progress_is_reported() -> None:
    """`doctor` reports a queue if messages are ready, each consumer has an unacknowledged message, and no message was
    delivered or acknowledged between two measurements.
    """
    full = queue(ready=2, unacked=1, consumers=1, ack=7, deliver_get=8)
    assert stands_still(full, full)
    assert stands_still(queue(ready=2, unacked=1, consumers=1))
    assert not stands_still(full), "it has acknowledged before"
    assert not stands_still({**full, "messages_ready": 0}, full), "nothing waits"
    assert not stands_still({**full, "consumers": 2}, full), "one consumer has nothing to do"
    assert stands_still({**full, "consumers": 2, "arguments": {"x-single-active-consumer": True}}, full)
    later = queue(ready=2, unacked=1, consumers=1, ack=8, deliver_get=9)
    assert not stands_still(later, full)
    assert not stands_still(full, {**full, "messages_ready": 3}), (
        "one was delivered, and the statistics do not show it yet"
    )
    stats = {"ack": 7, "deliver_get": 8, "ack_details": {"rate": 0.2}}
    assert not stands_still({**full, "message_stats": stats}, full), (
        "the statistics are older than the two measurements"
    )


def expiring(name: str, exchange: str, key: str | None = None) -> Queue:
    arguments = {"x-message-ttl": 1000, "x-dead-letter-exchange": exchange}
    return Queue(name, arguments=arguments if key is None else {**arguments, "x-dead-letter-routing-key": key})


def test_doctor_says_that_an_exchange_without_bindings_loses_only_messages_published_now() -> None:
    """If an exchange has no bindings, `doctor` says that messages published now are lost. It also says how many were
    published before, but not that these were lost, because the exchange may have had a binding at that time.
    """
    exchange = {"name": "logs", "vhost": "/", "type": "fanout", "message_stats": {"publish_in": 1}}
    (found,) = Paths("/", {"logs": exchange}).findings()
    assert str(found.what) == "has no bindings: messages published to it now are lost (1 published so far)"


def test_a_cycle_of_queues_that_dead_letter_expired_messages_is_reported_once() -> None:
    """If queues dead-letter expired messages to each other in a cycle, directly or through exchanges, `doctor`
    reports the cycle as one problem. It also finds cycles among thousands of queues.
    """

    def circles(*queues: Queue, bindings: tuple[Binding, ...] = ()) -> list[str]:
        exchange = {"name": "logs", "type": "topic"}
        paths = Paths("/", {"": {"name": "", "type": "direct"}, "logs": exchange}, {}, [*queues], {"logs"}, [*bindings])
        return [finding.thing for finding in paths.findings()]

    assert circles(expiring("a", "")) == ["queue 'a'"]
    assert circles(expiring("a", "", "b"), expiring("b", "", "c"), expiring("c", "", "a")) == ["queue 'a'"]
    assert circles(expiring("a", "", "b"), expiring("b", "", "done")) == []
    assert circles(expiring("a", "logs"), bindings=(Binding("logs", "a", "kern.*"),)) == ["queue 'a'"]
    assert circles(expiring("a", "logs", "x"), bindings=(Binding("logs", "a", "kern.*"),)) == []
    assert circles(expiring("a", "gone")) == []
    many = [expiring(f"q{number}", "", "jobs") for number in range(5000)]
    assert circles(*many) == [], "not a cycle"
    assert len(circles(*(expiring(f"q{number}", "", f"q{number}") for number in range(5000)))) == 5000
    dense = [Binding("logs", f"q{number}", "#") for number in range(300)]
    assert circles(*(expiring(f"q{number}", "logs") for number in range(300)), bindings=(*dense,))


def test_findings_are_sorted_by_severity_and_grouped() -> None:
    """`doctor` sorts problems by severity, for example a memory alarm before a transient queue. If there are more than
    three problems of the same kind, it puts them on one line.
    """
    transient = [Finding("transient", f"queue 'q{number}'", "", "", "/") for number in range(5)]
    mixed = [
        *transient[:2],
        Finding("no-consumer", "queue 'a'", "", ""),
        *transient[2:],
        Finding("alarm", "node", "", ""),
    ]
    found = [(group[0].check, group[0].thing, len(group)) for group in grouped(worst_first(mixed))]
    assert found == [("alarm", "node", 1), ("no-consumer", "queue 'a'", 1), ("transient", "queue 'q0'", 5)]
    assert len(list(said(transient[:3]))) == 3
    assert list(said(transient)) == ["queue 'q0'  (and 4 more: 'q1', 'q2', 'q3' and 1 other)"]


def test_a_nagios_check_waits_4_seconds_for_all_silent_stream_ports() -> None:
    """If no node answers on its stream port, `doctor --format nagios` waits for at most 4 seconds in total. It
    therefore sets the connection timeout to 4 seconds divided by three times the number of nodes, because the handshake
    with one node may take three times the timeout.
    """
    addresses = _hurried(Access(parse_addresses("amqp://a,amqp://b"), TlsFiles())).addresses
    assert sum(3 * each.connection_timeout for each in addresses) == pytest.approx(4.0)


def test_the_nagios_status_depends_on_the_most_severe_problem() -> None:
    """With `--format nagios`, `doctor` reports CRITICAL if at least one problem is critical, such as a memory alarm.
    If all problems are less severe, such as a queue without a consumer, it reports WARNING.
    """
    lost, blocked = Finding("no-consumer", "queue 'a'", "", ""), Finding("alarm", "node a", "has a memory alarm", "")
    assert [reports.nagios_state(found) for found in ([], [lost], [blocked, lost])] == [0, 1, 2]
    assert next(reports.nagios([blocked, lost], "here")) == (
        "RABBITMQ CRITICAL - 2 problems at here: node a has a memory alarm | critical=1 warning=1"
    )


class PartlyHidden:
    """A management API that shows the names of all virtual hosts, but the exchanges of only some of them."""

    user = "ann"

    def __init__(self, names: list[str], shown: list[str]) -> None:
        self._names, self._shown = names, shown

    def items(self, path: str, columns: tuple[str, ...] = ()) -> Iterator[Json]:  # noqa: ARG002
        return iter([{"name": name} for name in self._names])

    def pages(self, path: str, columns: tuple[str, ...] = ()) -> Iterator[Json]:  # noqa: ARG002
        return iter([{"vhost": name} for name in self._shown])


@pytest.mark.parametrize(
    ("names", "shown", "said"),
    [
        ([], [], "user 'ann' has no permissions in any virtual host"),
        (["/"], ["/"], None),
        (["/", "a"], ["/"], "user 'ann' has no permissions in vhost 'a'"),
        (list("abcdef"), [], "user 'ann' has no permissions in vhost 'a', 'b', 'c' and 3 others"),
    ],
)
def test_doctor_says_in_which_virtual_hosts_the_user_sees_no_queues(
    names: list[str], shown: list[str], said: str | None
) -> None:
    """`doctor` names the first three virtual hosts in which the management API shows the user no queues or exchanges,
    and says how many others there are. If the user sees no virtual host at all, `doctor` says so.
    """
    assert hidden_queues(cast("Management", PartlyHidden(names, shown))) == said


def test_a_nagios_check_is_unknown_only_if_an_essential_check_could_not_be_run() -> None:
    """If no problem was found, but alarms could not be checked, the state for Nagios is UNKNOWN. It is OK if only
    permissions could not be checked. Problems take precedence: the state is WARNING or CRITICAL, and the summary says
    what was not checked.
    """
    alarms, permissions = Unchecked("nodes", "no tag", "add it"), Unchecked("permissions", "no tag", "add it")
    lost, down = Finding("no-consumer", "queue 'a'", "", ""), Finding("node-down", "node a", "is not running", "")
    found: list[list[Finding]] = [[], [lost], [down]]
    assert [reports.nagios_state(each, [alarms, permissions]) for each in found] == [3, 1, 2]
    assert [reports.nagios_state(each, [permissions]) for each in found] == [0, 1, 2]
    assert [*reports.nagios([], "here", [permissions, alarms])] == [
        "RABBITMQ UNKNOWN - alarms and nodes were not checked: no tag (add it) | critical=0 warning=0",
        "permissions were not checked: no tag",
    ]
    assert [*reports.nagios([down], "here", [alarms])] == [
        "RABBITMQ CRITICAL - 1 problem at here (not checked: alarms and nodes): node a is not running"
        " | critical=1 warning=0",
        "node a is not running",
        "alarms and nodes were not checked: no tag (add it)",
    ]
