"""The errors and hints that users see when the broker, the operating system or pika reports an error."""

import errno
import socket
import ssl
import struct
from collections.abc import Callable

import pytest
from pika import exceptions
from pika.adapters.utils import connection_workflow as workflow

from mqtool.address import Address, parse_address
from mqtool.amqp import pika_errors
from mqtool.codecs.amqp10_values import Char
from mqtool.codecs.field_tables import NoFieldType
from mqtool.errors import (
    AccessRefused,
    BadData,
    DeclaredDifferently,
    GetRefused,
    HeadersTooLarge,
    MqtoolError,
    NotFound,
    NothingAnswers,
    NoVirtualHost,
    Unavailable,
    UnknownExchangeType,
    UsageError,
)

ONE = Address("one", 5672, "v", "ann")
TIMEOUT = "delivery acknowledgement on channel 1 timed out"
ELSEWHERE = "check the host and the port, and whether the broker is running"
TLS_TEXT = "name the authority that signed it with --tls-ca, and the broker by the name in its certificate"
PORTS = "check the port: AMQP's is 5672, with TLS 5671"
NOT_IN_TIME = "one:5672 accepted the connection but did not answer as an AMQP broker in time"
RAISE_TIMEOUT = (
    "raise consumer_timeout in rabbitmq.conf, or for the queue (RabbitMQ 3.12): consumer-timeout in a policy, or "
    "x-consumer-timeout; or take less time: worker --timeout"
)
DIALECT = "another --dialect may match it; without --strict it is used as it is"
PLUGIN = "a plugin may be missing: 'rabbitmq-plugins list' shows what the broker has"
AS_JSON = "text is neither a number nor true or false; write those as JSON, as in --argument KEY:=true"
IMPOSSIBLE = "see --queue-type, --durable, --transient and --argument"


def ssl_error(kind: type[ssl.SSLError], **attributes: str | None) -> ssl.SSLError:
    """An error as Python's ssl module raises it, with attributes that its constructor does not set."""
    error = kind(1, "[SSL: ODD_REASON] odd reason (_ssl.c:1)")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("code", "text", "kind", "words", "hint"),
    [
        (403, "ACCESS_REFUSED - no access to queue 'q'", AccessRefused, "no access to queue 'q'",
         pika_errors.LACKS_PERMISSION),
        (403, "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'ann'", AccessRefused,
         "access to queue 'q' in vhost '/' refused for user 'ann'",
         "an administrator can grant it to user 'ann' with --configure, --write or --read of 'mqtool permission set'; "
         "a new pattern replaces the old one"),
        (403, "ACCESS_REFUSED - write access to exchange 'x' in vhost 'my shop' refused for user 'bob'", AccessRefused,
         "write access to exchange 'x' in vhost 'my shop' refused for user 'bob'",
         "an administrator can grant it to user 'bob' with --write of 'mqtool permission set'; "
         "a new pattern replaces the old one"),
        (403, "ACCESS_REFUSED - access to topic 'k' in exchange 'x' in vhost '/' refused for user 'ann'", AccessRefused,
         "access to topic 'k' in exchange 'x' in vhost '/' refused for user 'ann'",
         "the user's topic permissions do not include it; on the broker: rabbitmqctl set_topic_permissions"),
        (403, "ACCESS_REFUSED - operation not permitted on the default exchange", AccessRefused,
         "operation not permitted on the default exchange",
         "it routes to the queue named by the routing key: 'mqtool send -q NAME' publishes there"),
        (403, "ACCESS_REFUSED - deletion of system exchange 'amq.topic' not allowed", AccessRefused,
         "deletion of system exchange 'amq.topic' not allowed", "the broker reserves it for itself"),
        (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", AccessRefused,
         "queue 'q' in vhost '/' in exclusive use",
         "a consumer is exclusive, and nobody else can consume: 'mqtool queue show NAME' names it"),
        (403, "ACCESS_REFUSED - exchange name 'amq.x' contains reserved prefix", AccessRefused,
         "exchange name 'amq.x' contains reserved prefix",
         "names that start with 'amq.' are reserved for the broker; choose another"),
        (404, "NOT_FOUND - no exchange 'amq.default' in vhost '/'", NotFound, "no exchange 'amq.default' in vhost '/'",
         "the name of the default exchange is empty: 'mqtool send -q QUEUE' publishes to it"),
        (404, "NOT_FOUND - no queue 'q'", NotFound, "no queue 'q'",
         "check the name: 'mqtool list queues' and 'mqtool list exchanges' show what exists"),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'", DeclaredDifferently,
         "cannot obtain exclusive access to locked queue 'q'",
         "the queue is exclusive to another connection; use another name"),
        (405, "RESOURCE_LOCKED - cannot obtain access to locked queue 'q' in vhost '/'. basic.get operations are not "
         "supported by quorum queues with single active consumer", GetRefused,
         "cannot obtain access to locked queue 'q' in vhost '/'. basic.get operations are not supported by quorum "
         "queues with single active consumer",
         "to read it, mqtool needs the management API or the configure permission for the queue"),
        (540, "NOT_IMPLEMENTED - basic.qos global is not supported by quorum queues", UsageError,
         "basic.qos global is not supported by quorum queues", "leave it out: only classic queues have it"),
        (503, "COMMAND_INVALID - unknown exchange type 'x-odd'", UnknownExchangeType, "unknown exchange type 'x-odd'",
         PLUGIN),
        (406, "PRECONDITION_FAILED - invalid exchange type 'x-odd'", UnknownExchangeType,
         "invalid exchange type 'x-odd'", PLUGIN),
        (504, "CHANNEL_ERROR - unknown exchange type", Unavailable,
         "the broker closed the connection: unknown exchange type", None),
        (406, f"PRECONDITION_FAILED - {TIMEOUT}. Timeout value used: 1800000 ms.", Unavailable,
         "a delivery was not acknowledged within the broker's consumer timeout of 30m; another consumer gets it",
         RAISE_TIMEOUT),
        (406, f"PRECONDITION_FAILED - {TIMEOUT}", Unavailable,
         "a delivery was not acknowledged within the broker's consumer timeout; another consumer gets it",
         RAISE_TIMEOUT),
        (406, "PRECONDITION_FAILED - consumer timeout", Unavailable, "consumer timeout",
         "a delivery was not acknowledged within the broker's consumer_timeout (30 minutes unless configured)"),
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q'", DeclaredDifferently,
         "inequivalent arg 'durable' for queue 'q'", DIALECT),
        (406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x'", DeclaredDifferently,
         "inequivalent arg 'type' for exchange 'x'",
         "an exchange of another type routes differently; name another with --exchange"),
        *((406, f"PRECONDITION_FAILED - {text}", UsageError, text, hint)
          for text, hint in (
              ("invalid arg 'x-single-active-consumer' for queue 'q': {unacceptable_type,longstr}", AS_JSON),
              ("invalid arg 'x-max-length' for queue 'q' in vhost '/': \"expected integer, got longstr\"", AS_JSON),
              ("invalid arg 'x-stream-offset' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue",
               "only streams have offsets: leave out --offset"),
          )),
        *((406, f"PRECONDITION_FAILED - {sign}", UsageError, sign, IMPOSSIBLE)
          for sign in ("invalid arg 'x'", "invalid property 'exclusive'", "invalid 'x-dead-letter-strategy' argument",
                       "server-named queue")),
        (406, "PRECONDITION_FAILED - invalid expiration 'x'", BadData, "invalid expiration 'x'",
         "an expiration is a number of milliseconds, as text"),
        (406, "PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'ann'", BadData,
         "user_id property set to 'bob' but authenticated user was 'ann'",
         "the property user-id must name the user who logged in"),
        (406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8", BadData,
         "message size 9 is larger than configured max size 8",
         "the broker takes up to 8 bytes; on RabbitMQ, max_message_size in rabbitmq.conf sets the limit"),
        (406, "PRECONDITION_FAILED - message size 20000000 is larger than configured max size 16777216", BadData,
         "message size 20000000 is larger than configured max size 16777216",
         "the broker takes up to 16,777,216 bytes; on RabbitMQ, max_message_size in rabbitmq.conf sets the limit"),
        (406, "PRECONDITION_FAILED - unknown delivery tag 1", BadData, "unknown delivery tag 1", None),
        (541, "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nBy\ndefault", DeclaredDifferently,
         "Feature `transient_nonexcl_queues` is deprecated.",
         "this broker no longer accepts transient queues: use --dialect python, or --durable"),
        (320, "CONNECTION_FORCED - A - B", Unavailable, "the broker closed the connection: A - B", None),
        (0, "", Unavailable, "the broker closed the connection: reply code 0", None),
    ],
)  # fmt: skip
def test_the_brokers_reply_code_and_text_determine_the_error_and_its_hint(
    code: int, text: str, kind: type[MqtoolError], words: str, hint: str | None
) -> None:
    """If the broker closes a channel or a connection, its reply code and reply text determine the type of mqtool's
    error and the hint, if there is one. For a few errors, such as a consumer timeout, mqtool has its own error text.
    All other errors contain the broker's text without the name of the reply code, such as NOT_FOUND.
    """
    error = pika_errors.closed_by_broker(exceptions.ChannelClosedByBroker(code, text))
    assert (type(error), str(error), error.hint) == (kind, words, hint)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.StreamLostError("Stream connection lost: ConnectionResetError(104, 'Connection reset by peer')"),
         "connection reset by peer"),
        (exceptions.StreamLostError("Transport indicated EOF"), "closed by the other end"),
        (exceptions.StreamLostError("odd"), "it broke"),
        (exceptions.AMQPHeartbeatTimeout("No activity or too many missed heartbeats"),
         "No activity or too many missed heartbeats"),
        (exceptions.ConnectionWrongStateError(), "ConnectionWrongStateError"),
        (OSError(113, "No route to host"), "no route to host"),
        (OSError("odd"), "odd"),
        (ssl_error(ssl.SSLError, reason="RECORD_LAYER_FAILURE"), "record layer failure"),
        (ssl_error(ssl.SSLError, reason=None), "[ssl: odd reason] odd reason ( ssl.c:1)"),
    ],
)  # fmt: skip
def test_the_error_about_a_lost_connection_gives_the_reason(error: Exception, words: str) -> None:
    """If a connection is lost, mqtool's error gives the reason: what the operating system or TLS reports, such as
    "connection reset by peer", or that the other end has closed the connection. It quotes pika only if there is no such
    reason, for example after too many missed heartbeats.
    """
    lost = pika_errors.closed_by_broker(error)
    assert (type(lost), str(lost), lost.hint) == (Unavailable, f"the connection was lost: {words}", None)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("amqp://localhost", "start one with 'mqtool broker up', or name another with --url"),
        ("amqp://127.0.0.1:5673", "start one with 'mqtool broker up --port=5673', or name another with --url"),
        ("amqp://one", ELSEWHERE),
        ("amqp://[::1]", ELSEWHERE),
        ("amqps://localhost", ELSEWHERE),
    ],
)
def test_if_no_broker_answers_the_hint_says_how_to_start_one_at_that_address(url: str, hint: str) -> None:
    """If no broker answers on a port of localhost or 127.0.0.1, the hint is the `mqtool broker up` command that starts
    one there. If the URL names another address, such as [::1], or uses TLS, `broker up` cannot start a broker there,
    and the hint does not mention the command.
    """
    assert pika_errors.connecting(ConnectionRefusedError(), parse_address(url)).hint == hint


@pytest.mark.parametrize(
    ("cause", "kind", "words", "hint"),
    [
        (ConnectionRefusedError(), NothingAnswers, "no broker answers at one:5672: connection refused", ELSEWHERE),
        (socket.gaierror(-2, "Name or service not known"), NothingAnswers,
         "cannot find the host 'one': name or service not known", "check the host name in --url"),
        (UnicodeError(), Unavailable, "cannot find the host 'one': not a valid host name", "check it in --url"),
        (ssl_error(ssl.SSLCertVerificationError, verify_message="self-signed certificate"), Unavailable,
         "the certificate of one:5672 cannot be trusted: self-signed certificate", TLS_TEXT),
        (ssl_error(ssl.SSLError, reason="WRONG_VERSION_NUMBER"), Unavailable,
         "one:5672 does not speak TLS: wrong version number",
         "use amqp:// for a plain port (usually 5672), amqps:// for a TLS port (usually 5671)"),
        (exceptions.StreamLostError("SSLError(1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13')"), AccessRefused,
         "one:5672 does not accept the client certificate: certificate required",
         "name a certificate that the broker trusts with --tls-cert and --tls-key"),
        (exceptions.StreamLostError("[SSL: TLSV1_ALERT_UNKNOWN_CA] x"), AccessRefused,
         "one:5672 does not accept the client certificate: unknown ca",
         "name a certificate that the broker trusts with --tls-cert and --tls-key"),
        (workflow.AMQPConnectorStackTimeout(), Unavailable, NOT_IN_TIME, PORTS),
        (exceptions.ConnectionOpenAborted(), Unavailable, NOT_IN_TIME, PORTS),
        (workflow.AMQPConnectorAborted(), Unavailable, "connecting to one:5672 was aborted", ELSEWHERE),
        (TimeoutError(), Unavailable, "one:5672 does not answer: timed out",
         "check the address, and whether a firewall blocks it"),
        (exceptions.ProbableAuthenticationError("closed"), AccessRefused,
         "one:5672 refused the login of user 'ann'",
         "check the user and the password: in --url, or --user and --password-file"),
        (exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED - Login was refused using PLAIN"), AccessRefused,
         "one:5672 refused the login of user 'ann': Login was refused using PLAIN",
         "check the user and the password: in --url, or --user and --password-file"),
        (exceptions.ProbableAccessDeniedError("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost v not found'"),
         NoVirtualHost, "cannot open vhost 'v': vhost v not found",
         "the broker has no vhost 'v': check the URL's path; leave it out, or write /%2F, for vhost '/'"),
        (exceptions.ProbableAccessDeniedError(
            "ConnectionClosedByBroker: (530) \"NOT_ALLOWED - access to vhost 'v' refused for user 'bob'\""),
         AccessRefused, "cannot open vhost 'v': access to vhost 'v' refused for user 'bob'",
         "an administrator can grant it to user 'bob' with --configure, --write or --read of 'mqtool permission set'; "
         "a new pattern replaces the old one"),
        (exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED - odd"), AccessRefused,
         "cannot open vhost 'v': odd",
         "an administrator can grant it to user 'ann' with --configure, --write or --read of 'mqtool permission set'; "
         "a new pattern replaces the old one"),
        (exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED - shutdown"), Unavailable,
         "one:5672 closed the connection: shutdown", None),
        (exceptions.ProbableAuthenticationError(repr(exceptions.ConnectionClosedByBroker(0, ""))), Unavailable,
         "one:5672 closed the connection: reply code 0", None),
        (exceptions.ProbableAuthenticationError(repr(exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED - x"))),
         AccessRefused, "one:5672 refused the login of user 'ann'",
         "check the user and the password: in --url, or --user and --password-file"),
        (exceptions.ProbableAccessDeniedError("odd"), Unavailable, "one:5672 closed the connection: odd", None),
        (exceptions.IncompatibleProtocolError("x"), Unavailable,
         "one:5672 accepted the connection, but is not an AMQP 0-9-1 broker",
         "use amqps:// if the port speaks TLS; 15672 is the management page's port, AMQP's is 5672"),
        (exceptions.ProtocolVersionMismatch("sent", "received"), Unavailable,
         "one:5672 accepted the connection, but is not an AMQP 0-9-1 broker",
         "use amqps:// if the port speaks TLS; 15672 is the management page's port, AMQP's is 5672"),
        (exceptions.StreamLostError("x"), Unavailable,
         "one:5672 accepted the connection, but is not an AMQP 0-9-1 broker",
         "use amqps:// if the port speaks TLS; 15672 is the management page's port, AMQP's is 5672"),
        (OSError(113, "No route to host"), Unavailable, "cannot connect to one:5672: no route to host", ELSEWHERE),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda error: error,
        workflow.AMQPConnectorSocketConnectError,
        exceptions.AMQPConnectionError,
        lambda error: workflow.AMQPConnectionWorkflowFailed(
            [OSError(errno.ENETUNREACH, ""), workflow.AMQPConnectorAMQPHandshakeError(error), OSError("another")]
        ),
        lambda error: exceptions.AMQPConnectionError(workflow.AMQPConnectionWorkflowFailed([error])),
    ],
    ids=["plain", "phase", "pika", "second address", "nested"],
)
def test_a_failed_attempt_to_connect_is_explained_in_plain_words(
    wrapped: Callable[[BaseException], BaseException],
    cause: BaseException,
    kind: type[MqtoolError],
    words: str,
    hint: str | None,
) -> None:
    """If a connection cannot be opened, mqtool's error gives the reason in plain words, even if pika has wrapped the
    cause in other exceptions. The hint, if there is one, depends on the reason. If a host has several addresses, mqtool
    ignores the errors of addresses that this machine cannot reach.
    """
    error = pika_errors.connecting(wrapped(cause), ONE)
    assert (type(error), str(error), error.hint) == (kind, words, hint)


def test_if_no_address_of_a_host_can_be_reached_the_error_is_that_of_the_last_one() -> None:
    """If this machine can reach none of a host's addresses, mqtool's error gives the reason for the last one tried."""
    tried = [OSError(errno.EADDRNOTAVAIL, "Cannot assign"), OSError(errno.ENETUNREACH, "Network is unreachable")]
    error = pika_errors.connecting(workflow.AMQPConnectionWorkflowFailed(tried), ONE)
    assert str(error) == "cannot connect to one:5672: network is unreachable"


@pytest.mark.parametrize(
    ("address", "words", "hint"),
    [
        (ONE._replace(tls=True), "one:5672 refused the login: why",
         "name a user in --url or with --user; without one, guest logs in, or the user of the client certificate"),
        (ONE._replace(tls=True, names_user=True), "one:5672 refused the login of user 'ann': why",
         "check the user and the password: in --url, or --user and --password-file"),
        (ONE._replace(user="guest"), "one:5672 refused the login of user 'guest': why",
         "RabbitMQ accepts 'guest' from its own machine only: on the broker, 'mqtool user add NAME' and "
         "'mqtool permission set NAME', then --user NAME"),
        *((Address(host), f"{host}:5672 refused the login of user 'guest': why",
           "check the user and the password: in --url, or --user and --password-file")
          for host in ("localhost", "127.0.0.1", "::1")),
    ],
)  # fmt: skip
def test_a_refused_login_has_a_hint_that_depends_on_the_user(address: Address, words: str, hint: str) -> None:
    """If the broker refuses the login, the hint depends on the user. If guest tried to log in to a broker on another
    machine, the hint says that RabbitMQ accepts guest only from its own machine. If no user is named and TLS is used,
    it says how to name one. Otherwise, it says to check the user and the password.
    """
    error = pika_errors.login_refused(address, "ACCESS_REFUSED - why")
    assert (type(error), str(error), error.hint) == (AccessRefused, words, hint)


@pytest.mark.parametrize("tls", [True, False])
def test_the_hint_for_another_protocol_depends_on_tls(*, tls: bool) -> None:
    """If a server does not speak AMQP, or closes the connection during the handshake, mqtool's error has a hint. For a
    URL with amqp://, it suggests amqps://. For a URL with amqps://, it names the option for a client certificate.
    """
    address = ONE._replace(tls=tls)
    other, early = pika_errors.not_amqp(address, "1.0"), pika_errors.closed_early(address)
    assert type(other) is type(early) is Unavailable
    assert str(other) == "one:5672 accepted the connection, but is not an AMQP 1.0 broker"
    assert str(early) == "one:5672 closed the connection during the handshake"
    certificate = "; if clients need a certificate, name it with --tls-cert"
    assert (other.hint, early.hint) == (
        (
            f"check the port: AMQP's with TLS is usually 5671{certificate}",
            f"the broker may be starting or stopping: try again{certificate}",
        )
        if tls
        else (
            "use amqps:// if the port speaks TLS; 15672 is the management page's port, AMQP's is 5672",
            "the broker may be starting or stopping: try again; if the port speaks TLS, use amqps://; AMQP's port is "
            "usually 5672",
        )
    )


@pytest.mark.parametrize(
    ("cause", "has_answered", "is_cut_off"),
    [
        (exceptions.IncompatibleProtocolError("x"), False, True),
        (exceptions.IncompatibleProtocolError("x"), True, False),
        (exceptions.ProbableAuthenticationError("x"), True, True),
        (exceptions.ProbableAccessDeniedError("x"), True, True),
        (exceptions.ProbableAccessDeniedError("ConnectionClosedByBroker: (530) 'x'"), True, False),
        (exceptions.ProbableAuthenticationError("TLSV1_ALERT_UNKNOWN_CA"), True, False),
        (OSError(), False, False),
    ],
)
def test_a_handshake_that_is_cut_off_does_not_count_as_a_refused_login_or_another_protocol(
    cause: BaseException, *, has_answered: bool, is_cut_off: bool
) -> None:
    """If a server closes the connection during the handshake without giving a reason, pika reports a refused login or
    another protocol, but mqtool treats the handshake as cut off. mqtool accepts pika's error only if the server has
    given a reason for a refusal, or has sent data that pika takes for another protocol.
    """
    failed = exceptions.AMQPConnectionError(cause)
    assert pika_errors.is_cut_off(failed, has_answered=has_answered) is is_cut_off


def test_a_failed_attempt_to_reconnect_is_described_without_the_words_of_pika() -> None:
    """If an attempt to reconnect fails with an error of mqtool itself, the notice contains this error. If it fails with
    an exception of pika, the notice says only that the connection was lost again.
    """
    assert pika_errors.in_words(Unavailable("no route")) == "no route"
    assert pika_errors.in_words(exceptions.ConnectionWrongStateError("x")) == "the connection was lost again"


@pytest.mark.parametrize(
    ("code", "text", "exchanges", "is_mended", "is_harmless"),
    [
        (406, f"PRECONDITION_FAILED - {TIMEOUT}", [], True, False),
        (404, "NOT_FOUND - no exchange 'x' in vhost '/'", ["y", "x"], True, False),
        (404, "NOT_FOUND - no exchange 'x' in vhost '/'", ["y"], False, False),
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable'", ["x"], False, True),
        (406, "PRECONDITION_FAILED - inequivalent arg 'type'", ["x"], False, False),
        (406, "PRECONDITION_FAILED - odd", ["x"], False, False),
        (405, "RESOURCE_LOCKED - inequivalent arg 'durable'", ["x"], False, False),
    ],
)
def test_channel_errors_after_which_mqtool_can_continue_are_recognized(
    code: int, text: str, exchanges: list[str], *, is_mended: bool, is_harmless: bool
) -> None:
    """If the broker closes a channel because of a consumer timeout, or because of a missing exchange that mqtool itself
    declares again, mqtool can continue on a new channel. If a declaration fails because the queue or exchange exists
    with other properties or arguments, mqtool can use the existing one, unless it is an exchange of another type.
    """
    error = exceptions.ChannelClosedByBroker(code, text)
    assert pika_errors.is_mended_by_reopening(error, exchanges) is is_mended
    assert pika_errors.is_harmless_difference(error) is is_harmless
    assert not pika_errors.is_mended_by_reopening(OSError(), exchanges)
    assert not pika_errors.is_harmless_difference(OSError())


@pytest.mark.parametrize(
    ("error", "kind", "words", "hint"),
    [
        (exceptions.ShortStringTooLong(b"x" * 300), UsageError,
         "the name or key is 300 bytes long; AMQP allows 255", f"it starts with '{'x' * 40}'"),
        (exceptions.UnsupportedAMQPFieldException([], 1j), BadData, "AMQP has no type for the value 1j",
         "write it as text"),
        (NoFieldType(1j), BadData,
         "a header or an argument has a value of type complex, which AMQP 0-9-1 lacks: 1j", "write it as text"),
        (NoFieldType(Char("x"), "h"), BadData,
         "the header 'h' has a value of type char, which AMQP 0-9-1 lacks: 'x'", "write it as text"),
        (NoFieldType(float("-inf"), "h"), BadData, "the header 'h' has a value that is not a finite number: -inf",
         "RabbitMQ closes a connection that sends one"),
        (struct.error("x"), BadData, "a number in a header, a property or an argument is out of range",
         "AMQP's integers have 64 bits, and its times start in 1970"),
        (OverflowError("x"), BadData, "a number in a header, a property or an argument is out of range",
         "AMQP's integers have 64 bits, and its times start in 1970"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "x"), UsageError,
         "a name, a key or a header is not valid UTF-8", "only a message's body may be any bytes"),
        (TypeError("odd"), BadData, "this cannot be sent: odd", "see 'mqtool send --help' for --property and -H"),
    ],
)  # fmt: skip
def test_the_error_about_a_value_that_amqp_cannot_express_names_the_kind_of_value(
    error: Exception, kind: type[MqtoolError], words: str, hint: str
) -> None:
    """If a name, a header, a property or an argument cannot be encoded for AMQP, mqtool's error says which kind of
    value is the cause, such as a number that is out of range, and has a hint.
    """
    found = pika_errors.cannot_encode(error)
    assert (type(found), str(found), found.hint) == (kind, words, hint)


def test_an_error_about_a_name_or_headers_that_are_too_long_gives_the_size() -> None:
    """If a name is too long, or a message's headers and properties are too large, mqtool's error contains the size and
    the limit. The hint about a name quotes its beginning, which never ends in the middle of a character.
    """
    name = pika_errors.too_long("queue name", b"x" * 39 + "é".encode() * 150)
    assert str(name) == "the queue name is 339 bytes long; AMQP allows 255"
    assert name.hint == f"it starts with '{'x' * 39}'"
    headers = pika_errors.headers_too_large(140_000, 131_064)
    assert type(headers) is HeadersTooLarge
    assert str(headers) == "the headers and properties are 140,000 bytes long; the broker takes up to 131,064"
    assert headers.hint == "move what is large into the body"


def test_the_size_that_the_broker_accepts_is_taken_from_its_reply() -> None:
    """If the broker closes a channel because a message was too large, mqtool takes the broker's size limit from the
    reply text. It takes no limit from other errors.
    """
    text = "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000"
    assert pika_errors.largest_message(exceptions.ChannelClosedByBroker(406, text)) == 1000
    assert pika_errors.largest_message(exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - other")) is None
    assert pika_errors.largest_message(ValueError()) is None


def test_the_error_about_a_message_larger_than_512_mib_says_to_check_the_url() -> None:
    """If mqtool is sent a message larger than 512 MiB, its error names this limit. RabbitMQ never sends a message
    that large, so the hint says to check --url, and whatever is between mqtool and the broker.
    """
    error = pika_errors.message_too_large()
    assert str(error) == "the broker sends a message of more than 512 MiB"
    assert error.hint == ("RabbitMQ sends nothing as large; check --url, and what is between mqtool and the broker")


@pytest.mark.parametrize(("port", "usual"), [(15672, "the management API"), (5552, "streams")])
def test_the_hint_about_a_handshake_on_a_port_of_another_protocol_names_the_usual_port(port: int, usual: str) -> None:
    """If a server closes the connection during the handshake, and its port is usually that of the management API or of
    streams, the hint says so, and names the usual port of AMQP.
    """
    hint = f"{port} is usually the port of {usual}; AMQP's is 5672"
    assert pika_errors.closed_early(Address("one", port, "v", "ann")).hint == hint
