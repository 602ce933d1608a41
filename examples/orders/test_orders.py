"""Tests of the order service, with mqtool's embedded broker: no mocks, no Docker, and faults on demand."""

import threading
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from examples.orders.orders import Billing, OrderFailed, Orders


@pytest.fixture
def orders(amqp_vhost: Any) -> Iterator[Orders]:
    orders = Orders(amqp_vhost.url)
    yield orders
    orders.close()


@pytest.fixture
def billed(amqp_vhost: Any) -> Iterator[list[Any]]:
    """Run Billing during a test; return the list to which it adds each order that it bills."""
    bills: list[Any] = []
    billing = Billing(amqp_vhost.url, bills.append)
    thread = threading.Thread(target=billing.run)
    thread.start()
    yield bills
    billing.stop()
    thread.join()


def test_an_order_is_announced(amqp_vhost: Any, orders: Orders) -> None:
    """A placed order is published as a persistent message, and routed to the queue `billing`."""
    orders.place(item=7)
    (event,) = amqp_vhost.published(exchange="orders", routing_key="order.placed")
    assert event.json() == {"item": 7}
    assert event.properties["delivery_mode"] == 2
    assert event.queues == ("billing",)


def test_an_order_is_billed(amqp_vhost: Any, orders: Orders, billed: list[Any]) -> None:
    """A placed order is billed, and then its message is acknowledged."""
    orders.place(item=7)
    amqp_vhost.wait_for(lambda: amqp_vhost.queue("billing").acked)
    assert billed == [{"item": 7}]


def test_an_order_is_billed_once_even_if_it_is_redelivered(amqp_vhost: Any, orders: Orders, billed: list[Any]) -> None:
    """If an acknowledgement is lost and the broker redelivers the order, Billing bills the order only once."""
    amqp_vhost.faults.lose_acks(queue="billing")
    orders.place(item=7)
    (again,) = amqp_vhost.wait_for(lambda: amqp_vhost.queue("billing").acked)
    assert again.redelivered
    assert billed == [{"item": 7}]


def test_an_order_that_is_not_json_is_dead_lettered(amqp_vhost: Any, billed: list[Any]) -> None:
    """An order that is not valid JSON is rejected, dead-lettered to the queue `billing.failed`, and not billed."""
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        connection.channel().basic_publish("orders", "order.placed", b"?")
    assert amqp_vhost.queue("billing.failed").messages().bodies == [b"?"]
    assert amqp_vhost.queue("billing").rejected.bodies == [b"?"]
    assert billed == []


def test_a_refused_order_is_an_error(amqp_vhost: Any, orders: Orders) -> None:
    """If the broker nacks an order, place() raises OrderFailed, and the order is not in the queue `billing`."""
    with amqp_vhost.faults.nack_publishes("billing"), pytest.raises(OrderFailed, match="refused"):
        orders.place(item=7)
    assert not amqp_vhost.queue("billing").messages(timeout=0)


def test_an_unroutable_order_is_an_error(amqp_vhost: Any, orders: Orders) -> None:
    """If the broker returns an order as unroutable, place() raises OrderFailed."""
    amqp_vhost.faults.return_unroutable()
    with pytest.raises(OrderFailed, match="refused"):
        orders.place(item=7)


def test_an_order_is_placed_after_a_lost_connection(amqp_vhost: Any, orders: Orders) -> None:
    """If the connection was cut, place() reconnects, and the order is in the queue `billing` exactly once."""
    assert amqp_vhost.faults.cut_connections("orders") == 1
    orders.place(item=7)
    assert len(amqp_vhost.queue("billing").messages()) == 1


def test_an_order_survives_a_restart(amqp_vhost: Any, orders: Orders) -> None:
    """After a restart of the broker, an order that was placed before is still in the queue, and another order can be
    placed.
    """
    orders.place(item=7)
    amqp_vhost.faults.restart()
    orders.place(item=8)
    assert [each.json()["item"] for each in amqp_vhost.queue("billing").messages(2)] == [7, 8]


def test_an_order_fails_if_no_broker_accepts_connections(amqp_vhost: Any, orders: Orders) -> None:
    """If no broker accepts connections, place() raises OrderFailed after its last attempt to connect."""
    with amqp_vhost.faults.refuse_connections():
        amqp_vhost.faults.cut_connections()
        with pytest.raises(OrderFailed, match="no broker"):
            orders.place(item=7)
