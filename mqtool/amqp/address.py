"""Where a broker is and how to get in: AMQP URLs (https://www.rabbitmq.com/docs/uri-spec) and TLS files."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mqtool.errors import UsageError

_EXAMPLE = "a URL looks like amqp://user:password@host:5672/vhost"


@dataclass(frozen=True, slots=True)
class Address:
    """One node of a broker, with the credentials for it. Printing one never shows the password.

    Attributes:
        heartbeat: seconds; None leaves it to the broker, 0 turns heartbeats off.
        connection_timeout: seconds for the TCP connection, and as many again for the AMQP handshake.
    """

    host: str = "localhost"
    port: int = 5672
    virtual_host: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    heartbeat: int | None = None
    connection_timeout: float = 5.0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.virtual_host == "/" else "/" + quote(self.virtual_host, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{quote(self.user, safe='')}@{host}:{self.port}{vhost}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the authority that signed the broker's certificate, and our own certificate and key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A context that verifies the broker's certificate and its name.

        Raises:
            UsageError: a file is missing or is not PEM.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path)
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise UsageError(f"cannot use the TLS files {files}: {reason}", "give files in PEM form") from error
        return context


def parse_addresses(urls: str) -> list[Address]:
    """The nodes that comma-separated URLs name.

    Raises:
        UsageError: one of them is not an AMQP URL; the message shows it without its password.
    """
    addresses = [parse_address(url.strip()) for url in urls.split(",") if url.strip()]
    if not addresses:
        raise UsageError("the broker's URL is empty", _EXAMPLE)
    return addresses


def parse_address(url: str) -> Address:
    """The node that one URL names. No path, "/" and "/%2F" all mean the virtual host "/".

    Raises:
        UsageError: it is not an AMQP URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"bad broker URL {_without_password(url)!r}: {error}", _EXAMPLE) from error
    if parts.scheme not in ("amqp", "amqps"):
        scheme = f"its scheme is {parts.scheme!r}" if "://" in url else "it has no scheme"
        raise UsageError(
            f"bad broker URL {_without_password(url)!r}: {scheme}, not amqp or amqps",
            "15672 is the management page's port; AMQP's is 5672" if port == 15672 else _EXAMPLE,
        )
    if port == 0:
        raise UsageError(f"bad broker URL {_without_password(url)!r}: port 0 is no port to connect to", _EXAMPLE)
    if parts.fragment:
        raise UsageError(
            f"bad broker URL {_without_password(url)!r}: '#' starts a fragment, which an AMQP URL has not",
            "in a password or a vhost, write # as %23",
        )
    tls = parts.scheme == "amqps"
    vhost = unquote(parts.path[1:]) or "/"
    if len(vhost.encode()) > 255:
        raise UsageError("bad broker URL: its vhost is longer than 255 bytes", _EXAMPLE)
    options = _query_options(parts.query, url)
    return Address(
        host=parts.hostname or "localhost",
        port=port or (5671 if tls else 5672),
        virtual_host=vhost,
        user="guest" if parts.username is None else unquote(parts.username),
        password="guest" if parts.password is None else unquote(parts.password),
        tls=tls,
        heartbeat=int(options["heartbeat"]) if "heartbeat" in options else None,
        connection_timeout=float(options.get("connection_timeout", 5000)) / 1000,
    )


def _query_options(query: str, url: str) -> dict[str, str]:
    """The query parameters that mqtool honours: heartbeat (seconds), connection_timeout (milliseconds)."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in ("heartbeat", "connection_timeout"):
            raise UsageError(
                f"bad broker URL {_without_password(url)!r}: unknown parameter {name!r}",
                "known are heartbeat (seconds) and connection_timeout (milliseconds); for TLS files, --tls-ca",
            )
        if not value.isdecimal():
            raise UsageError(f"bad broker URL {_without_password(url)!r}: {name} is {value!r}, not a whole number")
    return options


def _without_password(url: str) -> str:
    """The URL, fit to be shown: whatever may be a password is left out, even where the URL cannot be parsed."""
    scheme, separator, rest = url.rpartition("://")
    credentials, at, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}{':***' if ':' in credentials else ''}{at}{place}"
