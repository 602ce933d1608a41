"""The addresses of AMQP 1.0, version 2, as the embedded broker reads and writes them."""

import pytest

from mqtool.broker.embedded.amqp10.addresses import (
    PublishTarget,
    is_version_2,
    parse_source,
    parse_target,
    queue_address,
)

TOO_LONG = "a name or a routing key is longer than 255 bytes"


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("/queues/q", PublishTarget("", "q", "q")),
        ("/queues/a%2Fb%20%C3%A9", PublishTarget("", "a/b é", "a/b é")),
        ("/queues/" + "q" * 255, PublishTarget("", "q" * 255, "q" * 255)),
        ("/exchanges/x", PublishTarget("x", "")),
        ("/exchanges/x/key", PublishTarget("x", "key")),
        ("/exchanges/a%2Fb/c%2Fd", PublishTarget("a/b", "c/d")),
    ],
)
def test_an_address_names_a_queue_or_an_exchange_with_a_routing_key(address: str, target: PublishTarget) -> None:
    """An AMQP 1.0 message that is sent to the address of a queue goes to this queue. A message to the address of an
    exchange goes to this exchange with the routing key in the address, or with an empty routing key if there is none.
    Names and routing keys in addresses are percent-encoded.
    """
    assert parse_target(address) == target
    assert target.address == address
    assert is_version_2(address)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("/queues/", "the name of the queue is empty"),
        ("/queues/%", "a percent sign does not start an escape"),
        ("/queues/a%2", "a percent sign does not start an escape"),
        ("/exchanges/x/%zz", "a percent sign does not start an escape"),
        ("/queues/" + "q" * 256, TOO_LONG),
        ("/exchanges/" + "x" * 256, TOO_LONG),
        ("/exchanges/x/" + "k" * 256, TOO_LONG),
        ("/queue/q", "not an address"),
        ("q", "not an address"),
        ("/exchanges/", "not the address of an exchange"),
        ("/exchanges//key", "not the address of an exchange"),
        ("/exchanges/amq.default", "not the address of an exchange"),
        ("/exchanges/amq.default/key", "not the address of an exchange"),
        ("/exchanges/x/a/b", "not the address of an exchange"),
    ],
)
def test_parsing_an_invalid_target_address_raises_value_error(address: str, error: str) -> None:
    """Parsing the target address of an AMQP 1.0 link raises ValueError unless the address is in version 2 of RabbitMQ's
    address format, like /queues/q. It also raises ValueError if a part of the address is invalid, for example too long
    or wrongly percent-encoded, or if the exchange is the default exchange.
    """
    with pytest.raises(ValueError, match=f"^{error}$"):
        parse_target(address)


@pytest.mark.parametrize("address", ["/queues/%FF", "/exchanges/%FF", "/exchanges/x/%FF"])
def test_parsing_an_address_that_is_not_utf_8_raises_unicode_decode_error(address: str) -> None:
    """Parsing an AMQP 1.0 address raises UnicodeDecodeError if the percent-encoded bytes of a name or routing key in
    the address are not UTF-8, as in /queues/%FF.
    """
    with pytest.raises(UnicodeDecodeError):
        parse_target(address)


def test_the_source_of_a_receiver_must_be_the_address_of_a_queue() -> None:
    """An AMQP 1.0 receiver can use the address of a queue as its source. Parsing any other source, such as the
    address of an exchange, raises ValueError. The function is_version_2() returns True only for an address in version
    2 of RabbitMQ's address format, which begins with `/queues/` or `/exchanges/`.
    """
    assert parse_source("/queues/a%2Fb") == "a/b"
    assert queue_address("a/b") == "/queues/a%2Fb"
    for address in ("/exchanges/x", "q"):
        with pytest.raises(ValueError, match=r"^not the address of a queue$"):
            parse_source(address)
    assert [is_version_2(address) for address in ("/exchanges/x", "/queue/q", "q")] == [True, False, False]
