"""Parse AMQP URLs (https://www.rabbitmq.com/docs/uri-spec), hide their passwords, and load TLS files."""

import os
import re
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mqtool.errors import UsageError, reason_of

_EXAMPLE = "a URL looks like amqp://user:password@host:5672/vhost"
_ESCAPE = "in a user, a password or a vhost, write # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B, ] as %5D"
#: A comma that separates two URLs; a comma within a password does not.
_BETWEEN_URLS = r",(?=\s*(?:\w+://|,|$))"
_HIDDEN_PARAMETER = r"(?i)([?&][^=&#]*(?:pass|pw|secret|token)[^=&#]*=)[^&#]*"
#: A host that is an IPv6 address, whose colons do not begin a port.
_IPV6 = r"(?i)^\[[\da-f:.]+\](?=[:/?#]|$)"
#: An amqp:// URL without its scheme: [user:password@]host[:port][/vhost].
_WITHOUT_SCHEME = r"(?ia)(?:[^/?#\s]+@)?(?:\[[\da-f:.]+\]|[\w.-]+)(?::\d+)?(?:[/?].*)?"
#: A heartbeat is negotiated in 16 bits.
_HEARTBEAT_MAX = 65_535
#: The most digits of a number in a URL: a connection_timeout of 115 days.
_DIGITS = 10


def connection_name() -> str:
    """Return the name of a command's connections in the broker's lists."""
    name = os.environ.get("MQTOOL_CONNECTION_NAME") or "mqtool"
    return name.encode("utf-8", "replace").decode()  # what is not UTF-8 in the environment becomes "?"


class Address(NamedTuple):
    """The address of one node of a broker, with credentials. Its str() and repr() never show the password.

    Attributes:
        names_user: True if a user was given. If not, mqtool may log in with a client certificate (SASL EXTERNAL).
        heartbeat: heartbeat interval in seconds; None uses the broker's, 0 turns heartbeats off.
        connection_timeout: time limit in seconds for the TCP connection, and again for the AMQP handshake.
    """

    host: str = "localhost"
    port: int = 5672
    virtual_host: str = "/"
    user: str = "guest"
    password: str = "guest"  # noqa: S105
    tls: bool = False
    heartbeat: int | None = None
    connection_timeout: float = 5.0
    names_user: bool = False

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def cluster(self, name: str | None) -> str:
        """Return a string that identifies this broker and virtual host: the cluster name, if it is unique.

        A cluster name that ends with "@localhost" is not unique, so the host and port are added to it.
        """
        unique = bool(name) and not str(name).endswith("@localhost")
        return f"{name} {self.virtual_host}" if unique else f"{name} {self.host}:{self.port} {self.virtual_host}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.virtual_host == "/" else "/" + quote(self.virtual_host, safe="")
        # If no user was given, mqtool may log in with a client certificate.
        is_default = self.user == "guest" and not self.names_user
        user = "" if self.tls and is_default else f"{quote(self.user, safe='')}@"
        return f"{'amqps' if self.tls else 'amqp'}://{user}{host}:{self.port}{vhost}"


class TlsFiles(NamedTuple):
    """PEM files: the CA certificate to verify the broker's certificate, and the client's own certificate and key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def logs_in(self, address: Address) -> bool:
        """True if mqtool logs in with the client's certificate, if the broker offers SASL EXTERNAL."""
        return address.tls and self.cert is not None and not address.names_user

    def context(self) -> "ssl.SSLContext":
        """Create an SSL context that verifies the broker's certificate and host name.

        Raises:
            UsageError: a file is missing or is not PEM, or there is a key without its certificate.
        """
        if self.key and not self.cert:
            raise UsageError(f"the key {self.key} needs its certificate", "name it with --tls-cert")
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            # Browsers and other clients have ignored the common name for years (RFC 9110, section 4.3.4).
            context.hostname_checks_common_name = False
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path)
            hint = "give files in PEM form"
            raise UsageError(f"cannot use the TLS files {files}: {reason_of(error)}", hint) from error
        return context


def parse_addresses(urls: str) -> list[Address]:
    """Parse comma-separated URLs.

    Raises:
        UsageError: one of them is not an AMQP URL. The error shows the URL without its password.
    """
    addresses = [parse_address(url) for url in _split(urls)]
    if not addresses:
        raise UsageError("the broker's URL is empty", _EXAMPLE)
    return addresses


def _split(urls: str) -> list[str]:
    may_have_password = "://" in urls or "@" in urls  # a password may contain a comma
    each = re.split(_BETWEEN_URLS, urls) if "," in urls and may_have_password else urls.split(",")
    return [url.strip() for url in each if url.strip()]


def _with_scheme(url: str) -> str:
    """Add the default scheme to a URL without one."""
    return f"amqp://{url}" if "://" not in url and re.fullmatch(_WITHOUT_SCHEME, url) else url


def parse_address(url: str) -> Address:
    """Parse one URL. The default scheme is amqp. An empty path, "/" and "/%2F" all mean the virtual host "/".

    Raises:
        UsageError: this is not an AMQP URL.
    """
    url = _with_scheme(url)
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme.isalnum():  # the text before "://" may be part of a password
        raise _bad(url, "it has no scheme", _EXAMPLE)
    if scheme.lower() not in ("amqp", "amqps"):
        hint = "15672 is the management page's port; AMQP's is 5672" if url.rstrip("/").endswith(":15672") else _EXAMPLE
        raise _bad(url, f"its scheme is {scheme!r}, not amqp or amqps", hint)
    try:
        parts = urlsplit(url)
    except ValueError as error:  # bad brackets, in an IPv6 address or in a password; the error's text may contain it
        raise _bad(url, "its host is not valid", _ESCAPE if "@" in url else _EXAMPLE) from error
    if "," in parts.netloc.rpartition("@")[2]:
        raise _bad(url, "its host contains a ','", "write a URL for each node: amqp://one,amqp://two")
    try:
        port = parts.port
    except ValueError as error:  # the error's text may contain part of a password
        raise _bad(url, "port must be between 1 and 65535", _ESCAPE if "@" in url else _EXAMPLE) from error
    if port == 0:
        raise _bad(url, "port must be between 1 and 65535", _EXAMPLE)
    if parts.fragment:
        raise _bad(url, "'#' starts a fragment, but AMQP URLs have none", _ESCAPE)
    tls = parts.scheme == "amqps"
    vhost = unquote(parts.path[1:]) or "/"
    if len(vhost.encode()) > 255:
        raise _bad(url, "its vhost is longer than 255 bytes", _EXAMPLE)
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
        names_user=parts.username is not None,
    )


def _query_options(query: str, url: str) -> dict[str, str]:
    """Parse and check the query parameters: heartbeat (seconds) and connection_timeout (milliseconds)."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in ("heartbeat", "connection_timeout"):
            raise _bad(
                url,
                f"unknown parameter {name!r}",
                "known are heartbeat (seconds) and connection_timeout (milliseconds); for TLS files, --tls-ca",
            )
        if not value.isdecimal() or len(value) > _DIGITS:
            raise _bad(url, f"{name} is {value!r}, not a whole number of up to {_DIGITS} digits")
    if int(options.get("heartbeat", 0)) > _HEARTBEAT_MAX:
        raise _bad(
            url,
            f"heartbeat is {options['heartbeat']}",
            f"up to {_HEARTBEAT_MAX:,} seconds are possible; 0 turns heartbeats off",
        )
    if int(options.get("connection_timeout", 1)) == 0:
        raise _bad(url, "connection_timeout must be more than 0", "it is in milliseconds")
    return options


def _bad(url: str, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"bad broker URL {_without_password(url)!r}: {what}", hint)


def in_virtual_host(urls: str, name: str) -> str:
    """Return the first of comma-separated valid URLs, without its password, and with another virtual host."""
    parts = urlsplit(_with_scheme(_split(urls)[0]))
    credentials, at, place = parts.netloc.rpartition("@")
    netloc = f"{credentials.partition(':')[0]}{at}{place or 'localhost'}"
    return parts._replace(netloc=netloc, path=f"/{quote(name, safe='')}").geturl()


def without_passwords(urls: str) -> str:
    """Remove the passwords from comma-separated URLs of a broker or its management API."""
    return ",".join(_without_password(url.strip(), mark="") for url in re.split(_BETWEEN_URLS, urls))


def hide_passwords(text: str) -> str:
    """Remove the passwords from the URLs in a text that may contain anything else, too."""
    return re.sub(r"[a-z]+://[^\s\"']+", lambda found: _without_password(found[0], mark=""), text)


def _without_password(url: str, mark: str = ":***") -> str:
    """Replace anything in a URL that may be a password, even if the URL cannot be parsed."""
    url = re.sub(_HIDDEN_PARAMETER, rf"\1{mark[1:]}", url)
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalnum():  # no scheme; any "://" is part of a password
        scheme, separator, rest = "", "", url
    credentials, at, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    if not at:  # if no port follows the colon, it may be a password without a host
        host = "".join(re.findall(_IPV6, place))
        place = host + re.sub(r":(?!\d+(?:[/?#]|$)).*", mark, place.removeprefix(host))
    return f"{scheme}{separator}{user}{mark if ':' in credentials else ''}{at}{place}"
