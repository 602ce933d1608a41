"""Error texts, what is logged about failures, and the names that queues and exchanges cannot have."""

import logging
from collections.abc import Callable

import pytest

from mqtool.broker.embedded.model import amqp_errors
from mqtool.broker.embedded.model.amqp_errors import (
    REPLY_NAMES,
    AmqpException,
    ChannelException,
    ConnectionException,
    FailureLog,
)
from mqtool.broker.embedded.model.names import is_too_long, name_error


@pytest.mark.parametrize(
    ("make", "arguments", "kind", "code", "what"),
    [
        (amqp_errors.no_such_queue, ("q", "v"), ChannelException, 404, "no queue 'q' in vhost 'v'"),
        (amqp_errors.no_such_exchange, ("x", "v"), ChannelException, 404, "no exchange 'x' in vhost 'v'"),
        (amqp_errors.locked_queue, ("q", "v"), ChannelException, 405,
         "cannot obtain exclusive access to locked queue 'q' in vhost 'v'. It could be originally declared on another "
         "connection or the exclusive property value does not match that of the original declaration."),
        (amqp_errors.precondition_failed, ("why",), ChannelException, 406, "why"),
        (amqp_errors.access_refused, ("why",), ChannelException, 403, "why"),
        (amqp_errors.storage_failed, (OSError("disk full"),), ConnectionException, 506,
         "cannot write to the data directory: disk full"),
        (ConnectionException, (541,), ConnectionException, 541, ""),
    ],
)  # fmt: skip
def test_an_error_has_rabbitmqs_code_and_text(
    make: Callable[..., AmqpException], arguments: tuple[object, ...], kind: type[AmqpException], code: int, what: str
) -> None:
    """Each AMQP 0-9-1 error of the broker has RabbitMQ's reply code, and a text that begins with the name of the
    code. Errors 403 to 406 close only the channel; errors 506 and 541 close the connection.
    """
    error = make(*arguments)
    text = f"{REPLY_NAMES[code]} - {what}" if what else REPLY_NAMES[code]
    assert (type(error), error.code, error.what, error.text, str(error)) == (kind, code, what, text, text)
    assert error.reply_text == text


@pytest.mark.parametrize(
    ("what", "sent"),
    [
        ("x" * 243, "x" * 243),
        ("x" * 244, "x" * 240 + "..."),
        ("é" * 130, "é" * 120 + "..."),
        ("x" + "é" * 130, "x" + "é" * 119 + "..."),
        ("a\udcffb", "ab"),
    ],
    ids=["longest", "too long", "too many bytes", "half a character", "not UTF-8"],
)
def test_an_error_text_is_truncated_to_255_bytes(what: str, sent: str) -> None:
    """The broker truncates the reply text of an error if it is longer than 255 bytes. The truncated text ends with
    `...`, and never in the middle of a character. Bytes that are not UTF-8 are removed.
    """
    error = AmqpException(404, what)
    assert error.reply_text == f"NOT_FOUND - {sent}"
    assert len(error.reply_text.encode()) <= 255


def test_the_broker_logs_each_kind_of_failure_once_and_at_most_100_failures(caplog: pytest.LogCaptureFixture) -> None:
    """If the broker cannot process a message, it logs the failure with a traceback. It logs only one failure for each
    combination of queue and exception type, and at most 100 failures in total. Line breaks in queue names are escaped,
    so that a name cannot forge lines in the log.
    """
    caplog.set_level(logging.ERROR)
    failures, error = FailureLog(), ValueError("wrong")
    for _ in range(2):
        failures.report("queue 'a\nb\udcff'", error)
    failures.report("queue 'a\nb\udcff'", TypeError("another kind"))
    ending = ": the message is set aside; further failures of this kind are not logged"
    assert [each.getMessage() for each in caplog.records] == [rf"queue 'a\nb\udcff'{ending}"] * 2
    assert caplog.records[0].exc_info == (ValueError, error, None)
    for number in range(200):
        failures.report(str(number), error)
    assert [each.getMessage() for each in caplog.records[-2:]] == [f"{number}{ending}" for number in (96, 97)]
    assert len(caplog.records) == 100


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", None),
        ("q" * 255, None),
        ("q" * 256, "queue name is longer than 255 bytes"),
        ("é" * 127 + "q", None),
        ("é" * 128, "queue name is longer than 255 bytes"),
        ("\udcff" * 255, "queue name is not UTF-8"),
        ("\udcff" * 256, "queue name is longer than 255 bytes"),
        ("a\udc80", "queue name is not UTF-8"),
        ("\ud7ff\ue000\U00010000", None),
    ],
    ids=ascii,
)
def test_the_error_for_a_name_says_whether_it_is_too_long_or_not_utf_8(name: str, error: str | None) -> None:
    """If a name, such as that of a queue, is longer than 255 bytes or is not UTF-8, the broker's error says which of
    the two is the problem.
    """
    assert name_error("queue name", name) == error
    assert is_too_long(name) == (error == "queue name is longer than 255 bytes")
