"""Errors of AMQP 1.0: a condition or the status of a management response becomes one of mqtool's errors."""

from types import SimpleNamespace

import pytest

from mqtool.address import Address
from mqtool.amqp10.refusals import ClosedByBroker, crashed, not_amqp10, too_old, vhost_refused
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently, MqtoolError, NotFound, Unavailable

LOCKED = "cannot obtain exclusive access to locked queue"
#: RabbitMQ's reason for closing the connection of a client that has missed heartbeats.
SILENT = "no frame received from client within idle timeout threshold"


def told(condition: str, description: str | None) -> SimpleNamespace:
    """The error of a Close, End or Detach."""
    return SimpleNamespace(condition=condition, description=description)


@pytest.mark.parametrize(
    ("refusal", "kind", "message", "hint"),
    [
        (told("amqp:link:message-size-exceeded", "too large"), BadData, "the broker refused the message: too large",
         "on RabbitMQ, max_message_size in rabbitmq.conf sets the limit"),
        (told("amqp:resource-deleted", "queue gone"), Unavailable, "the queue or exchange is gone: queue gone", None),
        (told("amqp:decode-error", "odd frame"), Unavailable, "the broker closed the connection: odd frame", None),
        (told("amqp:decode-error", None), Unavailable, "the broker closed the connection: amqp:decode-error", None),
        (None, Unavailable, "the broker gave no reason", None),
    ],
    ids=["message too large", "queue deleted", "another condition", "no description", "no error"],
)  # fmt: skip
def test_an_error_over_amqp_1_0_contains_the_brokers_description_or_condition(
    refusal: SimpleNamespace | None, kind: type[MqtoolError], message: str, hint: str | None
) -> None:
    """If a broker closes an AMQP 1.0 connection or link with an error, mqtool's error contains the description in the
    broker's error or, if there is none, its condition, such as amqp:decode-error. If the broker gives no error,
    mqtool's error says that the broker gave no reason.
    """
    error = ClosedByBroker.from_error(refusal).translated()
    assert (type(error), str(error), error.hint) == (kind, message, hint)


@pytest.mark.parametrize(
    ("condition", "kind"),
    [
        ("amqp:not-found", NotFound),
        ("amqp:unauthorized-access", AccessRefused),
        ("amqp:resource-locked", 405),
        ("amqp:precondition-failed", 406),
        ("amqp:resource-limit-exceeded", 406),
    ],
)
def test_a_condition_becomes_the_same_error_as_the_reply_code_of_amqp_0_9_1(
    condition: str, kind: type[MqtoolError] | int
) -> None:
    """For the condition of an AMQP 1.0 error, such as amqp:not-found, mqtool reports the same error as for the
    corresponding reply code of AMQP 0-9-1.
    """
    refusal = ClosedByBroker.from_error(told(condition, "why"))
    if isinstance(kind, int):
        assert refusal.reply_code == kind
    else:
        assert type(refusal.translated()) is kind
    assert "why" in str(refusal.translated())


@pytest.mark.parametrize(
    ("status", "body", "reply_code", "text"),
    [
        (400, "bad", 406, "bad"), (401, "no", 403, "no"), (403, "no", 403, "no"), (404, "none", 404, "none"),
        (409, "differs", 406, "differs"), (500, None, 0, "status 500"), (500, "", 0, "status 500"),
        (400, f"{LOCKED} 'q'", 405, f"{LOCKED} 'q'"),
    ],
)  # fmt: skip
def test_the_status_of_a_management_response_becomes_the_same_error_as_a_reply_code(
    status: int, body: str | None, reply_code: int, text: str
) -> None:
    """For the status of a response to an AMQP 1.0 management request, mqtool reports the same error as for the
    corresponding reply code of AMQP 0-9-1. If the response has no text, the error shows the status.
    """
    refusal = ClosedByBroker.from_response(status, body)
    assert (refusal.reply_code, refusal.reply_text, str(refusal)) == (reply_code, text, text)
    assert text in str(refusal.translated())


@pytest.mark.parametrize(
    ("refusal", "is_temporary"),
    [
        (ClosedByBroker.from_error(told("amqp:connection:forced", "shutdown")), True),
        (ClosedByBroker.from_error(told("amqp:internal-error", "failed")), True),
        (ClosedByBroker.from_error(None), True),
        (ClosedByBroker.from_error(told("amqp:not-found", "no queue")), False),
        (ClosedByBroker.from_error(told("amqp:resource-limit-exceeded", SILENT)), True),
        (ClosedByBroker.from_error(told("amqp:resource-limit-exceeded", "too many")), False),
        (ClosedByBroker.from_response(404, "no queue"), False),
        (ClosedByBroker.from_response(503, "starting"), True),
    ],
    ids=["forced", "internal error", "no error", "not found", "heartbeats", "limit", "response 404", "response 503"],
)
def test_mqtool_connects_again_over_amqp_1_0_only_after_a_temporary_refusal(
    refusal: ClosedByBroker, is_temporary: bool
) -> None:
    """If a broker closes an AMQP 1.0 connection without a reason, or for a temporary one, such as a shutdown of the
    broker, mqtool connects again. After any other reason, such as not-found, it does not. During a reconnection,
    mqtool makes another attempt if the broker refuses a management request with status 503, which is temporary, but
    not with status 404.
    """
    assert refusal.is_temporary is is_temporary


def test_an_internal_error_of_the_broker_is_a_crash_unless_an_operator_closed_the_connection() -> None:
    """If RabbitMQ ends an AMQP 1.0 session with amqp:internal-error, mqtool assumes a crash of the session, unless the
    description says that an operator closed the connection. If a session has crashed several times in a row, mqtool's
    error says so without the broker's description, and the hint names the usual cause and suggests other protocols.
    """
    refusal = ClosedByBroker.from_error(told("amqp:internal-error", "Session error: why"))
    operator = ClosedByBroker.from_error(told("amqp:internal-error", 'Connection forced: "Session error: why"'))
    assert (refusal.has_crashed, refusal.is_temporary) == (True, True)
    assert (operator.has_crashed, operator.is_temporary) == (False, True)
    error = crashed()
    assert (type(error), str(error), error.hint) == (
        Unavailable,
        "the broker ended the session because of an internal error, several times in a row",
        "a message that it cannot convert to AMQP 1.0 would do this: try --protocol amqp0.9.1, "
        "or for a stream, mqtool receive-stream",
    )


def test_a_different_durability_of_an_exchange_is_harmless_but_a_different_type_is_not() -> None:
    """If an exchange that mqtool declares over AMQP 1.0 already exists with a different durability, mqtool considers
    the difference harmless, because it can use the exchange as it is. A different type is not harmless. In both
    cases, the broker's refusal becomes the error DeclaredDifferently for a caller that accepts no difference.
    """
    for argument, is_harmless in (("durable", True), ("type", False)):
        text = f"PRECONDITION_FAILED - inequivalent arg '{argument}' for exchange 'x' in vhost '/': received 'a' but current is 'b'"  # noqa: E501  # fmt: skip
        refusal = ClosedByBroker.from_response(409, text)
        assert refusal.is_harmless_difference is is_harmless
        assert isinstance(refusal.translated(), DeclaredDifferently)


def test_errors_about_servers_without_amqp_1_0_and_about_refused_virtual_hosts_have_hints() -> None:
    """With `--protocol amqp1.0`, mqtool's error names the server if it does not speak AMQP 1.0, the version if RabbitMQ
    is older than 4.0, or the virtual host if it cannot be opened. The hint says what to do.
    """
    errors = [not_amqp10(Address("one", 5673)), too_old("3.13.7"), vhost_refused(Address(virtual_host="v", user="u"))]
    assert [(type(error), str(error), error.hint) for error in errors] == [
        (Unavailable, "one:5673 does not speak AMQP 1.0",
         "RabbitMQ does from 4.0 on; for AMQP 0-9-1, use --protocol amqp0.9.1"),
        (Unavailable, "AMQP 1.0 needs RabbitMQ 4.0, but the broker is RabbitMQ 3.13.7",
         "for AMQP 0-9-1, use --protocol amqp0.9.1"),
        (AccessRefused, "cannot open vhost 'v': it does not exist, or user 'u' may not use it",
         "check the URL's path; leave it out, or write /%2F, for vhost '/'"),
    ]  # fmt: skip
