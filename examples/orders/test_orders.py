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
    """Start Billing, and return the list of what it has billed."""
    bills: list[Any] = []
    billing = Billing(amqp_vhost.url, bills.append)
    thread = threading.Thread(target=billing.run)
    thread.start()
    yield bills
    billing.stop()
    thread.join()


def test_an_order_is_announced(amqp_vhost: Any, orders: Orders) -> None:
    """A placed order is published as a persistent message, and routed to the queue of billing."""
    orders.place(item=7)
    (event,) = amqp_vhost.published(exchange="orders", routing_key="order.placed")
    assert event.json() == {"item": 7}
    assert event.properties["delivery_mode"] == 2
    assert event.queues == ("billing",)


def test_an_order_is_billed(amqp_vhost: Any, orders: Orders, billed: list[Any]) -> None:
    """A placed order is billed, and its message acknowledged."""
    orders.place(item=7)
    amqp_vhost.wait_for(lambda: amqp_vhost.queue("billing").acked)
    assert billed == [{"item": 7}]


def test_an_order_is_billed_once_even_if_it_comes_again(amqp_vhost: Any, orders: Orders, billed: list[Any]) -> None:
    """If an acknowledgement is lost, and the broker redelivers the order, billing bills the order only once."""
    amqp_vhost.faults.lose_acks(queue="billing")
    orders.place(item=7)
    (again,) = amqp_vhost.wait_for(lambda: amqp_vhost.queue("billing").acked)
    assert again.redelivered
    assert billed == [{"item": 7}]


def test_what_cannot_be_read_is_set_aside(amqp_vhost: Any, billed: list[Any]) -> None:
    """An order that is not valid JSON is rejected, dead-lettered to billing.failed, and not billed."""
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        connection.channel().basic_publish("orders", "order.placed", b"?")
    assert amqp_vhost.queue("billing.failed").messages().bodies == [b"?"]
    assert amqp_vhost.queue("billing").rejected.bodies == [b"?"]
    assert billed == []


def test_a_refused_order_is_an_error(amqp_vhost: Any, orders: Orders) -> None:
    """If the broker nacks an order, place() raises OrderFailed, and the order is not in the queue of billing."""
    with amqp_vhost.faults.nack_publishes("billing"), pytest.raises(OrderFailed, match="refused"):
        orders.place(item=7)
    assert not amqp_vhost.queue("billing").messages(timeout=0)


def test_an_order_that_nobody_gets_is_an_error(amqp_vhost: Any, orders: Orders) -> None:
    """If the broker returns an order as unroutable, place() raises OrderFailed."""
    amqp_vhost.faults.return_unroutable()
    with pytest.raises(OrderFailed, match="refused"):
        orders.place(item=7)


def test_an_order_is_placed_after_a_lost_connection(amqp_vhost: Any, orders: Orders) -> None:
    """If the connection was cut, place() reconnects, and the order is in the queue of billing once."""
    assert amqp_vhost.faults.cut_connections("orders") == 1
    orders.place(item=7)
    assert len(amqp_vhost.queue("billing").messages()) == 1


def test_an_order_survives_a_restart(amqp_vhost: Any, orders: Orders) -> None:
    """An order that was placed before the broker restarts is still in the queue afterwards, and the next order can be
    placed.
    """
    orders.place(item=7)
    amqp_vhost.faults.restart()
    orders.place(item=8)
    assert [each.json()["item"] for each in amqp_vhost.queue("billing").messages(2)] == [7, 8]


def test_without_a_broker_an_order_fails(amqp_vhost: Any, orders: Orders) -> None:
    """If no broker accepts connections, place() raises OrderFailed after its last attempt."""
    with amqp_vhost.faults.refuse_connections():
        amqp_vhost.faults.cut_connections()
        with pytest.raises(OrderFailed, match="no broker"):
            orders.place(item=7)
