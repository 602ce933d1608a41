"""The user name that the mechanism EXTERNAL derives from a certificate's subject."""

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
        ("a ", r"a\ "),
        (" ", r"\ "),
        ("|}~", r"|}\7E"),
        ("\udcff", r"\FF"),
        ("", ""),
    ],
)
def test_special_characters_in_the_subject_of_a_certificate_are_escaped(value: str, escaped: str) -> None:
    """If a client logs in with a TLS certificate, special characters in the certificate's CN are escaped in the user
    name, as in RabbitMQ. A CN with a comma therefore cannot be mistaken for the subject of another user's
    certificate.
    """
    assert escape_name(value) == escaped
