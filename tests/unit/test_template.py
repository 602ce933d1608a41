"""Templates of --format."""

import json

import pytest

from mqtool.cli.display.delivery_writer import parse_template
from mqtool.errors import UsageError
from mqtool.message import Delivery

DELIVERY = Delivery(
    body=b"caf\xe9 [/red] %b\n",
    exchange="logs",
    routing_key="kern.é",
    queue="q",
    redelivered=True,
    properties={"headers": {"a": "é", "n": 5}, "message_id": "m-1", "correlation_id": None},
    delivery_tag=1,
)


def render(template: str) -> bytes:
    return b"".join(part(DELIVERY) for part in parse_template(template))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("%b", b"caf\xe9 [/red] %b\n"),
        ("%r", "kern.é".encode()),
        ("%e/%q", b"logs/q"),
        ("%s bytes", b"15 bytes"),
        ("%i", b"m-1"),
        ("%c", b""),
        ("%R", b"1"),
        ("100%%", b"100%"),
        ("%%b", b"%b"),
        (r"a\tb\nc\\n", b"a\tb\nc\\n"),
        ("a\\", b"a\\"),
        (r"\q", b"\\q"),
        ("two\nlines é", "two\nlines é".encode()),
        ("", b""),
    ],
)
def test_placeholders_of_format_are_filled_once(template: str, text: bytes) -> None:
    """The placeholders and escapes of `--format` are replaced only once. A body that contains a placeholder is printed
    unchanged, byte for byte.
    """
    assert render(template) == text


def test_headers_in_a_template_are_json() -> None:
    """The placeholder %h of `--format` prints a message's headers as a JSON object."""
    assert json.loads(render("%h")) == {"a": "é", "n": 5}


@pytest.mark.parametrize("template", ["%", "100%", "%z", "%é", "%B", "% b", "%\n"])
def test_an_unknown_placeholder_of_format_is_a_usage_error(template: str) -> None:
    """An unknown placeholder in `--format` raises UsageError. The hint names the help topic that lists all
    placeholders.
    """
    with pytest.raises(UsageError, match="unknown place") as caught:
        parse_template(template)
    assert caught.value.hint == "'mqtool help output' lists them"
