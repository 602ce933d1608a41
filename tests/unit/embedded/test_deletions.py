"""Deleting queues and exchanges with many bindings: each short step removes only a few of them."""

from collections.abc import Iterator

import pytest

from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from tests.unit.embedded.test_queue import add_queue, message


def bound(vhost: VirtualHost) -> int:
    """Return the number of bindings."""
    return len([*vhost.bindings()])


@pytest.mark.parametrize("what", ["queue", "exchange"])
@pytest.mark.parametrize(("bindings", "removed"), [(0, []), (1, [1]), (20, [20]), (50, [10, 20, 20])])
def test_each_step_of_a_deletion_removes_up_to_20_bindings(
    vhost: VirtualHost, what: str, bindings: int, removed: list[int]
) -> None:
    """The broker deletes a queue or an exchange in steps. Each step removes up to 20 bindings of the queue or exchange,
    and the last step removes the queue or exchange itself. Deleting a queue returns the number of its messages, and
    deleting an exchange returns 0.
    """
    queue, exchange = add_queue(vhost), BrokerExchange("e", "direct")
    vhost.add_exchange(exchange)
    queue.publish(message())
    for number in range(bindings):
        vhost.bind(exchange, queue, f"{number}", {})
    found, left = [], bindings

    def delete() -> Iterator[None]:
        count = yield from vhost.deletions.steps(queue if what == "queue" else exchange)
        assert count == (1 if what == "queue" else 0)

    for _ in delete():
        assert ("q" in vhost.queues, "e" in vhost.exchanges) == (True, True)
        found.append(left - bound(vhost))
        left = bound(vhost)
    assert (found, left) == (removed, 0)
    assert ("q" in vhost.queues, "e" in vhost.exchanges) == (what == "exchange", what == "queue")


def test_everything_in_a_virtual_host_is_deleted_in_steps(vhost: VirtualHost) -> None:
    """When a virtual host is deleted, the broker deletes its queues, and all bindings between its exchanges, in steps
    that remove up to 20 bindings each.
    """
    first, second = (BrokerExchange(name, "direct") for name in "ef")
    for exchange in (first, second):
        vhost.add_exchange(exchange)
    for name in "qr":
        add_queue(vhost, name)
        for number in range(30):
            vhost.bind(first, vhost.queues[name], f"{number}", {})
            vhost.bind(first, second, f"{name}{number}", {})
    left, most, steps = bound(vhost), 0, 0
    for _ in vhost.deletions.of_all([*vhost.queues.values()], [first]):
        most, left, steps = max(most, left - bound(vhost)), bound(vhost), steps + 1
    assert (bound(vhost), vhost.queues, most) == (0, {}, 20)
    assert steps == 2 * (2 + 1) + 3
