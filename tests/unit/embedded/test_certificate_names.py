"""The user name that EXTERNAL makes of a certificate's subject."""

import pytest

from mqtool.broker.embedded.amqp10.amqp10_socket import escape_name


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("orders", "orders"),
        ("orders,O=Example", r"orders\,O=Example"),
        ('a+b"c\\d<e>f;', r"a\+b\"c\\d\<e\>f\;"),
        (" a ", r"\ a\ "),
        ("#a#", r"\#a#"),
        ("é\n", r"\C3\A9\0A"),
        (" ", r"\ "),
        ("", ""),
    ],
)
def test_a_value_cannot_look_like_two(value: str, escaped: str) -> None:
    """As in RabbitMQ, special characters in a certificate's subject are escaped: a CN with a comma is no other user."""
    assert escape_name(value) == escaped
