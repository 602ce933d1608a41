"""Translate pika's and the operating system's exceptions into mqtool's."""

import errno
import re
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator

from pika import exceptions
from pika.adapters.utils import connection_workflow

from mqtool.address import Address
from mqtool.codecs.field_tables import NameTooLong, NoFieldType
from mqtool.duration import compact_duration
from mqtool.errors import (
    AccessRefused,
    BadData,
    DeclaredDifferently,
    GetRefused,
    HeadersTooLarge,
    InternalError,
    MqtoolError,
    NotFound,
    NothingAnswers,
    NoVirtualHost,
    Unavailable,
    UnknownExchangeType,
    UsageError,
)
from mqtool.message import LARGEST_MESSAGE
from mqtool.spelling import pasteable
from mqtool.version_changes import TRANSIENT

ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530
COMMAND_INVALID = 503

#: Matches the repr of pika's ConnectionClosedByBroker.
_TOLD_BY_BROKER = r"\((?P<code>\d+)\) (?P<quote>['\"])(?P<text>.*)(?P=quote)$"

#: Matches the repr of an OSError in pika's StreamLostError.
_ERROR_IN_REPR = r"Error\(\d+, '(?P<text>[^'\[]*)'\)"

#: What pika reports if the broker closes the connection during the handshake.
_CLOSED_BY_BROKER = (
    exceptions.ProbableAuthenticationError,
    exceptions.ProbableAccessDeniedError,
    exceptions.ConnectionClosedByBroker,
)

#: Matches RabbitMQ's error text for a missing permission.
_LACKING = (
    r"(?:(?P<right>configure|write|read) )?access to (?P<thing>.*) in vhost '(?P<vhost>.*)' "
    r"refused for user '(?P<user>.*)'"
)
LACKS_PERMISSION = "the user lacks a permission; an administrator can grant it with 'mqtool permission set'"

#: The hosts at which 'mqtool broker up' starts a broker.
_HERE = ("localhost", "127.0.0.1")

#: Errors of an address that this machine cannot reach, such as IPv6 on a machine without it.
_NO_WAY_THERE = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT)


def _root_cause(error: BaseException) -> BaseException:
    """Unwrap pika's exceptions to find the cause of a failed attempt to connect."""
    inner: object = None
    if isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
        inner = error.exception
    elif isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
        # A name may have several addresses. Those that this machine cannot reach say nothing about the broker.
        tried = [_root_cause(each) for each in error.exceptions]
        inner = next((each for each in tried if getattr(each, "errno", None) not in _NO_WAY_THERE), tried[-1])
    elif isinstance(error, exceptions.AMQPConnectionError) and error.args:
        inner = error.args[0]
    return _root_cause(inner) if isinstance(inner, BaseException) else error


def connecting(error: BaseException, address: Address) -> MqtoolError:
    """Translate the exception from a failed attempt to open a connection into one of mqtool's errors."""
    cause = _root_cause(error)
    where = f"{address.host}:{address.port}"
    if (refused := _REFUSED_CERTIFICATE.search(str(cause))) is not None:
        why = refused[1].replace("_", " ").lower()
        return AccessRefused(
            f"{where} does not accept the client certificate: {why}",
            "name a certificate that the broker trusts with --tls-cert and --tls-key",
        )
    for kind, what, hint in _meanings(address):
        if isinstance(cause, kind):
            is_nobody = kind in (ConnectionRefusedError, socket.gaierror)
            error_type = NothingAnswers if is_nobody else Unavailable
            return error_type(what.format(where=where, host=address.host, cause=_plain(cause)), hint)
    if isinstance(cause, exceptions.ProbableAuthenticationError) and _told(cause)[0] in (None, ACCESS_REFUSED):
        return login_refused(address, "")
    if isinstance(cause, _CLOSED_BY_BROKER):
        return _open_refused(address, cause)
    if isinstance(cause, exceptions.AMQPError):
        return not_amqp(address)
    return Unavailable(f"cannot connect to {where}: {_plain(cause)}", _if_none_answers(address))


#: In the text of an error, the TLS alert for a client certificate that is missing or not trusted. With TLS 1.3, it
#: arrives after the handshake, and pika reports only the text.
_REFUSED_CERTIFICATE = re.compile(r"_ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA)\b")

_SILENT = (
    "{where} accepted the connection but did not answer as an AMQP broker in time",
    "check the port: AMQP's is 5672, with TLS 5671",
)


def _if_none_answers(address: Address) -> str:
    """Return what a user can do if no broker listens at an address: start one, if `broker up` can start it there."""
    if address.host not in _HERE or address.tls:
        return "check the host and the port, and whether the broker is running"
    start = "mqtool broker up" if address.port == 5672 else pasteable("broker up --port=", str(address.port))
    return f"start one with '{start}', or name another with --url"


def _meanings(address: Address) -> Iterator[tuple[type[BaseException], str, str]]:
    """Yield exception types with error text and hint, the most specific types first."""
    yield ConnectionRefusedError, "no broker answers at {where}: connection refused", _if_none_answers(address)
    yield socket.gaierror, "cannot find the host {host!r}: {cause}", "check the host name in --url"
    yield UnicodeError, "cannot find the host {host!r}: not a valid host name", "check it in --url"
    yield (
        ssl.SSLCertVerificationError,
        "the certificate of {where} cannot be trusted: {cause}",
        "name the authority that signed it with --tls-ca, and the broker by the name in its certificate",
    )
    yield (
        ssl.SSLError,
        "{where} does not speak TLS: {cause}",
        "use amqp:// for a plain port (usually 5672), amqps:// for a TLS port (usually 5671)",
    )
    yield connection_workflow.AMQPConnectorStackTimeout, *_SILENT
    yield exceptions.ConnectionOpenAborted, *_SILENT  # pika's own time limit has passed
    yield connection_workflow.AMQPConnectorAborted, "connecting to {where} was aborted", _if_none_answers(address)
    yield TimeoutError, "{where} does not answer: timed out", "check the address, and whether a firewall blocks it"


def is_cut_off(error: BaseException, *, has_answered: bool) -> bool:
    """True if a connection was closed during the handshake, without a reason from the broker.

    pika reports this as another protocol, or as a refused login, because brokers from before 2012 refused logins in
    this way. RabbitMQ gives its reasons.

    Args:
        has_answered: True if the other end has sent anything.
    """
    cause = _root_cause(error)
    if _REFUSED_CERTIFICATE.search(str(cause)) is not None:
        return False
    if isinstance(cause, exceptions.IncompatibleProtocolError):
        return not has_answered
    guessed = isinstance(cause, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError)
    return guessed and "ConnectionClosedByBroker" not in str(cause)


def in_words(error: Exception) -> str:
    """Describe a failed attempt to connect, without pika's error text."""
    return str(error) if isinstance(error, MqtoolError) else "the connection was lost again"


def _plain(error: BaseException) -> str:
    """The text of an error, in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, exceptions.StreamLostError):  # in pika's words: "Transport indicated EOF", or a repr
        told = re.search(_ERROR_IN_REPR, str(error))
        if told:
            return told["text"].lower()
        return "closed by the other end" if "EOF" in str(error) else "it broke"
    return str(error) or type(error).__name__


def not_amqp(address: Address, version: str = "0-9-1") -> MqtoolError:
    """The error for a server that speaks another protocol, such as HTTP."""
    return Unavailable(
        f"{address.host}:{address.port} accepted the connection, but is not an AMQP {version} broker",
        "use amqps:// if the port speaks TLS; 15672 is the management page's port, AMQP's is 5672"
        if not address.tls
        else "check the port: AMQP's with TLS is usually 5671; if clients need a certificate, name it with --tls-cert",
    )


#: Ports of RabbitMQ that do not speak AMQP.
_OTHER_PORTS = {15672: "the management API", 15671: "the management API", 5552: "streams", 5551: "streams"}


def login_too_slow(address: Address, version: str, seconds: float) -> MqtoolError:
    """The error for a server that has not completed the login in time."""
    return Unavailable(
        f"{address.host}:{address.port} accepted the connection, but did not complete the login of AMQP {version} "
        f"within {seconds:g} s",
        _SILENT[1],
    )


def closed_early(address: Address) -> MqtoolError:
    """The error for a connection that the other end closes during the handshake, without a reason."""
    closed = f"{address.host}:{address.port} closed the connection during the handshake"
    if (usual := _OTHER_PORTS.get(address.port)) is not None:
        return Unavailable(closed, f"{address.port} is usually the port of {usual}; AMQP's is 5672")
    return Unavailable(
        closed,
        "the broker may be starting or stopping: try again"
        + (
            "; if clients need a certificate, name it with --tls-cert"
            if address.tls
            else "; if the port speaks TLS, use amqps://; AMQP's port is usually 5672"
        ),
    )


def login_refused(address: Address, reply_text: str) -> MqtoolError:
    said = f": {_in_short(reply_text)}" if reply_text else ""
    if not address.names_user and address.tls:
        return AccessRefused(
            f"{address.host}:{address.port} refused the login{said}",
            "name a user in --url or with --user; without one, guest logs in, or the user of the client certificate",
        )
    if address.user == "guest" and address.host not in ("localhost", "127.0.0.1", "::1"):
        return AccessRefused(
            f"{address.host}:{address.port} refused the login of user 'guest'{said}",
            "RabbitMQ accepts 'guest' from its own machine only: on the broker, 'mqtool user add NAME' and "
            "'mqtool permission set NAME', then --user NAME",
        )
    return AccessRefused(
        f"{address.host}:{address.port} refused the login of user {address.user!r}{said}",
        "check the user and the password: in --url, or --user and --password-file",
    )


def _told(error: BaseException) -> tuple[int | None, str]:
    """Return the reply code and text with which the broker closed the connection during the handshake."""
    text = getattr(error, "reply_text", "") or str(error)
    if told := re.search(_TOLD_BY_BROKER, text):  # all that pika reports until the connection is open
        return int(told["code"]), told["text"]
    return getattr(error, "reply_code", None), text


def _open_refused(address: Address, error: BaseException) -> MqtoolError:
    code, text = _told(error)
    text = _in_short(text) or f"reply code {code}"
    if code == ACCESS_REFUSED and "login was refused" in text.lower():
        return login_refused(address, text)
    vhost = address.virtual_host
    if "not found" in text:
        hint = f"the broker has no vhost {vhost!r}: check the URL's path; leave it out, or write /%2F, for vhost '/'"
        return NoVirtualHost(f"cannot open vhost {vhost!r}: {text}", hint)
    if code in (ACCESS_REFUSED, NOT_ALLOWED):
        told = re.search("for user '(.*)'", text)  # a client certificate may belong to any user
        hint = _hint_to_grant(told[1] if told else address.user)
        return AccessRefused(f"cannot open vhost {vhost!r}: {text}", hint)
    return Unavailable(f"{address.host}:{address.port} closed the connection: {text}")


def closed_by_broker(error: BaseException) -> MqtoolError:
    """Translate the error that closed an open channel or connection, with the broker's reason."""
    code = getattr(error, "reply_code", None)
    text = getattr(error, "reply_text", "")
    said = _plain(error) if code is None else _in_short(text) or f"reply code {code}"
    if code == ACCESS_REFUSED:
        return AccessRefused(said, _hint_for_refused_access(text))
    if code == NOT_FOUND and "no exchange 'amq.default'" in text:
        return NotFound(said, "the name of the default exchange is empty: 'mqtool send -q QUEUE' publishes to it")
    if code == NOT_FOUND:
        return NotFound(said, "check the name: 'mqtool list queues' and 'mqtool list exchanges' show what exists")
    if code == RESOURCE_LOCKED and "cannot obtain access" in text:  # after a long name, the rest may be cut off
        return GetRefused(said, "to read it, mqtool needs the management API or the configure permission for the queue")
    if code == RESOURCE_LOCKED:
        return DeclaredDifferently(said, "the queue is exclusive to another connection; use another name")
    if "not supported by quorum queues" in text:
        return UsageError(said, "leave it out: only classic queues have it")
    if code in (COMMAND_INVALID, PRECONDITION_FAILED) and re.search("(unknown|invalid) exchange type", text):
        return UnknownExchangeType(said, "a plugin may be missing: 'rabbitmq-plugins list' shows what the broker has")
    if code == PRECONDITION_FAILED:
        return _precondition_failed(said, text)
    if TRANSIENT.is_in(text):
        first_line = said.partition("\n")[0]  # of a longer text
        return DeclaredDifferently(
            first_line, "this broker no longer accepts transient queues: use --dialect python, or --durable"
        )
    lost = "the connection was lost" if code is None else "the broker closed the connection"
    return (InternalError if text == "INTERNAL_ERROR" else Unavailable)(f"{lost}: {said}")


def undeliverable(queue: str) -> str:
    """Return the hint for an InternalError that a message in a queue may have caused."""
    receive = pasteable("receive --protocol amqp1.0 --json --queue=", queue)
    return f"if RabbitMQ cannot deliver a message over AMQP 0-9-1, take it out: {receive}"


def _hint_for_refused_access(text: str) -> str:
    if "default exchange" in text:
        return "it routes to the queue named by the routing key: 'mqtool send -q NAME' publishes there"
    if "system exchange" in text:
        return "the broker reserves it for itself"
    if "in exclusive use" in text:
        return "a consumer is exclusive, and nobody else can consume: 'mqtool queue show NAME' names it"
    if "reserved" in text:
        return "names that start with 'amq.' are reserved for the broker; choose another"
    if (found := re.search(_LACKING, text)) is None:
        return LACKS_PERMISSION
    if found["thing"].startswith("topic "):
        return "the user's topic permissions do not include it; on the broker: rabbitmqctl set_topic_permissions"
    return _hint_to_grant(found["user"], found["right"])


def _hint_to_grant(user: str, right: str | None = None) -> str:
    """Say how to grant a permission. A command with a pattern, pasted, would replace what the user may do already."""
    options = f"--{right}" if right else "--configure, --write or --read"  # RabbitMQ before 3.12 does not name it
    return (
        f"an administrator can grant it to user {user!r} with {options} of 'mqtool permission set'; "
        "a new pattern replaces the old one"
    )


#: Part of RabbitMQ's error text for a delivery that was unacknowledged for too long.
#: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
_CONSUMER_TIMEOUT = "delivery acknowledgement on channel"
#: The hint for a program that takes longer.
RAISE_TIMEOUT = (
    "raise consumer_timeout in rabbitmq.conf, or for the queue (RabbitMQ 3.12): consumer-timeout in a policy, or "
    "x-consumer-timeout; or take less time: worker --timeout"
)
#: Parts of a broker's error texts for a declaration that is never valid.
_IMPOSSIBLE = ("invalid arg", "invalid property", "invalid 'x-", "server-named queue")


def _precondition_failed(said: str, text: str) -> MqtoolError:
    if _CONSUMER_TIMEOUT in text:
        limit = re.search(r"Timeout value used: (\d+) ms", text)
        within = f" of {compact_duration(int(limit[1]) / 1000)}" if limit else ""
        return Unavailable(
            f"a delivery was not acknowledged within the broker's consumer timeout{within}; another consumer gets it",
            RAISE_TIMEOUT,
        )
    if "inequivalent arg" in text:
        return DeclaredDifferently(said, _hint_for_difference(text))
    if any(sign in text for sign in _IMPOSSIBLE):
        return UsageError(said, _hint_for_invalid_declaration(text))
    if "timeout" in text:
        return Unavailable(
            said, "a delivery was not acknowledged within the broker's consumer_timeout (30 minutes unless configured)"
        )
    return BadData(said, _hint_for_refused_message(text))


def _hint_for_invalid_declaration(text: str) -> str:
    if "invalid arg 'x-stream-offset'" in text:
        return "only streams have offsets: leave out --offset"
    if re.search("(unacceptable_type,|got )longstr", text):
        return "text is neither a number nor true or false; write those as JSON, as in --argument KEY:=true"
    return "see --queue-type, --durable, --transient and --argument"


def _hint_for_difference(text: str) -> str:
    if "inequivalent arg 'type'" in text:
        return "an exchange of another type routes differently; name another with --exchange"
    return "another --dialect may match it; without --strict it is used as it is"


_MAX_SIZE = re.compile(r"larger than (?:configured )?max size ([0-9]+)")
#: A hint about messages that are too large. Other brokers, such as the embedded one, have no such file.
SETS_LIMIT = "on RabbitMQ, max_message_size in rabbitmq.conf sets the limit"


def _hint_for_refused_message(text: str) -> str | None:
    if "expiration" in text:
        return "an expiration is a number of milliseconds, as text"
    if "user_id" in text:
        return "the property user-id must name the user who logged in"
    if limit := _MAX_SIZE.search(text):
        return f"the broker takes up to {int(limit[1]):,} bytes; {SETS_LIMIT}"
    return None


def largest_message(error: BaseException) -> int | None:
    """The broker's max_message_size, if it has closed the channel because a message was larger."""
    found = _MAX_SIZE.search(getattr(error, "reply_text", ""))
    return int(found[1]) if found else None


def is_mended_by_reopening(error: BaseException, exchanges: Iterable[str]) -> bool:
    """True if a channel that was closed with this error works again once it is reopened.

    Args:
        exchanges: the names of the exchanges that are declared again when the channel is reopened.
    """
    text = getattr(error, "reply_text", "")
    return is_consumer_timeout(error) or any(f"no exchange '{name}'" in text for name in exchanges)


def is_consumer_timeout(error: BaseException) -> bool:
    """True if a channel was closed because a delivery was not acknowledged in time."""
    return _CONSUMER_TIMEOUT in getattr(error, "reply_text", "")


def is_harmless_difference(error: BaseException) -> bool:
    """True if a declaration failed because the queue or exchange has different settings, but the same type."""
    text = getattr(error, "reply_text", "")
    return (
        getattr(error, "reply_code", 0) == PRECONDITION_FAILED
        and "inequivalent arg" in text
        and "inequivalent arg 'type'" not in text
    )


def cannot_encode(error: Exception) -> MqtoolError:
    """Translate an error that occurred while encoding a name, header, property or argument."""
    if isinstance(error, exceptions.ShortStringTooLong | NameTooLong):
        return too_long("name or key", error.args[0])
    if isinstance(error, NoFieldType):
        value, *header = error.args
        what = f"the header {header[0]!r}" if header else "a header or an argument"
        if isinstance(value, float):
            return BadData(
                f"{what} has a value that is not a finite number: {value}",
                "RabbitMQ closes a connection that sends one",
            )
        kind = getattr(value, "wire_type", type(value).__name__)
        return BadData(f"{what} has a value of type {kind}, which AMQP 0-9-1 lacks: {value!r}", "write it as text")
    if isinstance(error, exceptions.UnsupportedAMQPFieldException):
        return BadData(f"AMQP has no type for the value {error.args[-1]!r}", "write it as text")
    if isinstance(error, struct.error | OverflowError):
        return BadData(
            "a number in a header, a property or an argument is out of range",
            "AMQP's integers have 64 bits, and its times start in 1970",
        )
    if isinstance(error, UnicodeEncodeError):
        return UsageError("a name, a key or a header is not valid UTF-8", "only a message's body may be any bytes")
    return BadData(f"this cannot be sent: {_plain(error)}", "see 'mqtool send --help' for --property and -H")


def too_long(what: str, name: bytes) -> UsageError:
    """The error for a name of more than 255 bytes, AMQP's limit for short strings."""
    shown = name[:40].decode("utf-8", "ignore")
    return UsageError(f"the {what} is {len(name)} bytes long; AMQP allows 255", f"it starts with {shown!r}")


def headers_too_large(size: int, limit: int) -> HeadersTooLarge:
    """The error for headers and properties that do not fit into one frame."""
    return HeadersTooLarge(
        f"the headers and properties are {size:,} bytes long; the broker takes up to {limit:,}",
        "move what is large into the body",
    )


def message_too_large() -> Unavailable:
    return Unavailable(f"the broker sends a message of more than {LARGEST_MESSAGE >> 20} MiB", _NO_BROKER)


#: The hint at a server that sends more than any RabbitMQ does.
_NO_BROKER = "RabbitMQ sends nothing as large; check --url, and what is between mqtool and the broker"


def _in_short(text: str) -> str:
    """Remove the constant from the broker's error text: "PRECONDITION_FAILED - x" becomes "x"."""
    return re.sub(r"^[A-Z_]+ - ", "", text)
