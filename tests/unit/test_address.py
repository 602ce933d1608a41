"""AMQP URLs."""

import re
import ssl
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import spec
from pika.exceptions import ConnectionClosedByBroker

from mqtool.address import (
    Address,
    TlsFiles,
    connection_name,
    in_virtual_host,
    parse_address,
    parse_addresses,
    without_passwords,
)
from mqtool.amqp import pika_errors
from mqtool.amqp.pika_private import CertificateFirst
from mqtool.cli.access import Access
from mqtool.errors import UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://", Address()),
        ("amqp://localhost", Address()),
        ("AMQP://localhost/", Address()),
        ("amqp://localhost/%2F", Address()),
        ("amqp://localhost/%2f", Address()),
        ("amqp://localhost/shop", Address(virtual_host="shop")),
        ("amqp://localhost//shop", Address(virtual_host="/shop")),
        ("amqp://localhost/a%2Fb%20c", Address(virtual_host="a/b c")),
        ("amqp://mq.example.org:5673", Address("mq.example.org", 5673)),
        ("amqp://[::1]:5673", Address("::1", 5673)),
        ("amqp://me:p%40ss%2F%3A@localhost", Address(user="me", password="p@ss/:")),
        ("amqp://me:p@ss@localhost", Address(user="me", password="p@ss")),
        ("amqp://me:p,w@localhost", Address(user="me", password="p,w")),
        ("amqp://me@localhost", Address(user="me")),
        ("amqp://:@localhost", Address(user="", password="")),
        ("localhost", Address()),
        ("mq.example.org:5673", Address("mq.example.org", 5673)),
        ("[::1]:5673/shop", Address("::1", 5673, "shop")),
        ("me:p@ss@localhost:5673", Address(port=5673, user="me", password="p@ss")),
        ("amqps://localhost", Address(port=5671, tls=True)),
        ("amqps://localhost:5672", Address(tls=True)),
        ("amqp://localhost?heartbeat=0", Address(heartbeat=0)),
        (
            "amqp://localhost/v?heartbeat=60&connection_timeout=1500",
            Address(virtual_host="v", heartbeat=60, connection_timeout=1.5),
        ),
    ],
)
def test_a_url_is_parsed_into_an_address(url: str, address: Address) -> None:
    """A broker URL is parsed into host, port, virtual host, user, password and options. Missing parts get RabbitMQ's
    default values.
    """
    found = parse_address(url)
    assert found == address._replace(names_user="@" in url)


@pytest.mark.parametrize(
    ("urls", "hosts"),
    [
        ("amqp://one,amqp://two:1,amqps://three", ["one", "two", "three"]),
        (" amqp://one , amqp://two ,", ["one", "two"]),
        ("amqp://one", ["one"]),
        ("me:p,w@one", ["one"]),
        ("one:5673, two", ["one", "two"]),
    ],
)
def test_commas_separate_the_nodes_of_a_cluster(urls: str, hosts: list[str]) -> None:
    """Commas separate the URLs of a cluster's nodes. Spaces around the commas are ignored."""
    assert [address.host for address in parse_addresses(urls)] == hosts


EXAMPLE = "a URL looks like amqp://user:password@host:5672/vhost"
ESCAPE = "in a user, a password or a vhost, write # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B, ] as %5D"
PORT = "port must be between 1 and 65535"
PARAMETERS = "known are heartbeat (seconds) and connection_timeout (milliseconds); for TLS files, --tls-ca"


@pytest.mark.parametrize(
    ("url", "shown", "message", "hint"),
    [
        ("local host", "", "it has no scheme", EXAMPLE),
        ("localhost:port", "localhost:***", "it has no scheme", EXAMPLE),
        ("amqp:localhost", "amqp:***", "it has no scheme", EXAMPLE),
        ("a:b://c", "a:***", "it has no scheme", EXAMPLE),
        ("http://localhost", "", "its scheme is 'http', not amqp or amqps", EXAMPLE),
        ("http://localhost:15672/", "", "its scheme is 'http', not amqp or amqps",
         "15672 is the management page's port; AMQP's is 5672"),
        ("amqp://one,two", "", "its host contains a ','", "write a URL for each node: amqp://one,amqp://two"),
        ("amqp://localhost:0", "", PORT, EXAMPLE),
        ("amqp://localhost:65536", "", PORT, EXAMPLE),
        ("amqp://localhost:-1", "amqp://localhost:***", PORT, EXAMPLE),
        ("amqp://localhost:x", "amqp://localhost:***", PORT, EXAMPLE),
        ("amqp://me:p/w@localhost", "amqp://me:***@localhost", PORT, ESCAPE),
        ("amqp://[::1", "amqp://[:***", "its host is not valid", EXAMPLE),
        ("amqp://me:[pw]@localhost", "amqp://me:***@localhost", "its host is not valid", ESCAPE),
        ("amqp://localhost/#v", "", "'#' starts a fragment, but AMQP URLs have none", ESCAPE),
        (f"amqp://localhost/{'v' * 256}", "", "its vhost is longer than 255 bytes", EXAMPLE),
        ("amqp://localhost?heartbeat=", "", "heartbeat is '', not a whole number of up to 10 digits", None),
        ("amqp://localhost?heartbeat=-1", "", "heartbeat is '-1', not a whole number of up to 10 digits", None),
        ("amqp://localhost?heartbeat=65536", "", "heartbeat is 65536",
         "up to 65,535 seconds are possible; 0 turns heartbeats off"),
        ("amqp://localhost?connection_timeout=0", "", "connection_timeout must be more than 0",
         "it is in milliseconds"),
        ("amqp://localhost?colour=red", "", "unknown parameter 'colour'", PARAMETERS),
        ("amqp://localhost?token=abc&x=1", "amqp://localhost?token=***&x=1", "unknown parameter 'token'", PARAMETERS),
    ],
)  # fmt: skip
def test_an_invalid_url_is_a_usage_error(url: str, shown: str, message: str, hint: str | None) -> None:
    """An invalid broker URL, for example one with the scheme http, port 65536 or an unknown option, raises
    UsageError. The error says what is wrong, and shows the URL without any part that could be a password.
    """
    with pytest.raises(UsageError) as raised:
        parse_addresses(url)
    assert (str(raised.value), raised.value.hint) == (f"bad broker URL {shown or url!r}: {message}", hint)


@pytest.mark.parametrize("urls", ["", ",", " "])
def test_an_empty_url_is_a_usage_error(urls: str) -> None:
    """An empty broker URL raises UsageError. The hint of the error shows an example of a URL."""
    with pytest.raises(UsageError) as raised:
        parse_addresses(urls)
    assert (str(raised.value), raised.value.hint) == ("the broker's URL is empty", EXAMPLE)


def test_the_smallest_and_largest_values_in_a_url_are_valid() -> None:
    """In a broker URL, a heartbeat of 65,535 seconds, ports 1 and 65535, a connection timeout of 1 ms and a vhost name
    of 255 bytes are valid.
    """
    found = parse_address(f"amqp://localhost:65535/{'v' * 255}?heartbeat=65535&connection_timeout=1")
    assert (found.port, len(found.virtual_host), found.heartbeat) == (65535, 255, 65535)
    assert found.connection_timeout == 0.001
    assert parse_address("amqp://localhost:1").port == 1


@pytest.mark.parametrize(
    ("urls", "shown"),
    [
        ("amqp://me:pw@one,amqp://two/v", "amqp://me@one,amqp://two/v"),
        ("amqp://me:p,w@one, amqp://two", "amqp://me@one,amqp://two"),
        ("http://a:b@h:15672/?password=x&y=1", "http://a@h:15672/?password=&y=1"),
        ("http://h?Secret=a#f", "http://h?Secret=#f"),
        ("me:pw@host", "me@host"),
        ("me:p://w@host", "me@host"),
        ("host:5672", "host:5672"),
        ("host:secret", "host"),
        ("x://a:b://c@d", "x://a@d"),
        ("[::1]:5672", "[::1]:5672"),
        ("http://[fe80::1]:15672/?password=x", "http://[fe80::1]:15672/?password="),
        ("me:pw@[::1]:5672/v", "me@[::1]:5672/v"),
        ("[::1]:secret", "[::1]"),
        ("amqp://[feed:beef]secret", "amqp://[feed"),
    ],
)
def test_passwords_are_removed_from_urls_that_are_shown(urls: str, shown: str) -> None:
    """mqtool removes passwords and other secrets from the URLs of a broker and of its management API before it shows
    these URLs.
    """
    assert without_passwords(urls) == shown


def test_a_connection_has_the_name_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable MQTOOL_CONNECTION_NAME sets the name of a command's connections. Without it, the name is
    `mqtool`.
    """
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "mine")
    assert connection_name() == "mine"
    monkeypatch.delenv("MQTOOL_CONNECTION_NAME")
    assert connection_name() == "mqtool"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("shop", "shop v"), ("rabbit@localhost", "rabbit@localhost h:1 v"), ("", " h:1 v"), (None, "None h:1 v")],
)
def test_host_and_port_help_to_identify_a_virtual_host_if_the_cluster_name_is_not_unique(
    name: str | None, shown: str
) -> None:
    """mqtool identifies a virtual host by its name and the name of the broker's cluster. It adds the broker's host
    and port if there is no cluster name, or if the cluster name ends with @localhost, because many brokers have such
    a name.
    """
    assert Address("h", 1, "v").cluster(name) == shown


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(words, words, words)
def test_percent_encoded_parts_of_a_url_are_decoded(user: str, password: str, vhost: str) -> None:
    """The user, password and virtual host in a URL can contain any characters if they are percent-encoded."""
    place = "/".join([f"{quote(user, safe='')}:{quote(password, safe='')}@localhost", quote(vhost, safe="")])

    address = parse_address(f"amqp://{place}")

    assert (address.user, address.password, address.virtual_host) == (user, password, vhost)


@example("", "", "://")
@example("amqp://", "[", "]")
@example("amqp://", "\uff0f", "")
@given(
    st.sampled_from(["amqp://", ""]),
    st.text("abc:[],.% ", max_size=4),  # after a @, a / or a ?, it would be a host, a vhost or a parameter
    st.text("abc:/?#@[],.% 019", max_size=12),
)
def test_a_password_in_a_url_is_never_shown(scheme: str, before: str, after: str) -> None:
    """A password in a URL never appears in the printed address or in an error, even if the password contains characters
    of URL syntax.
    """
    word = "WORD"
    try:
        address = parse_address(f"{scheme}me:{before}{word}{after}@localhost")
        shown = f"{address} {address!r}"
    except UsageError as error:
        shown = f"{error} {error.hint}"
    assert word not in shown


def test_an_address_prints_as_the_url_without_its_password() -> None:
    """mqtool prints the address of a broker as an AMQP URL with percent-encoded parts and without the password."""
    assert str(Address("::1", 5673, "a/b", "m@e", "secret", tls=True)) == "amqps://m%40e@[::1]:5673/a%2Fb"
    assert str(parse_address("amqps://guest:guest@one")) == "amqps://guest@one:5671"
    assert str(parse_address("amqps://one")) == "amqps://one:5671"  # the user is the one in the client's certificate
    assert str(Address()) == "amqp://guest@localhost:5672"
    assert str(Address(user="a/b", virtual_host="X")) == "amqp://a%2Fb@localhost:5672/X"
    assert repr(Address("one")) == "Address('amqp://guest@one:5672')"


def test_a_tls_key_needs_its_certificate() -> None:
    """If a client's TLS key is given without the client's certificate, mqtool raises UsageError. The hint names the
    option for the certificate, --tls-cert.
    """
    with pytest.raises(UsageError, match=r"^the key key.pem needs its certificate$") as raised:
        TlsFiles(key=Path("key.pem")).context()
    assert raised.value.hint == "name it with --tls-cert"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        (OSError("no details"), "no details"),
        (ssl.SSLError("[SSL] PEM lib"), re.escape("('[SSL] PEM lib',)")),
    ],
    ids=["missing", "no reason", "not PEM"],
)
def test_tls_files_that_cannot_be_used_are_named(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of the TLS files is missing or is not in PEM format, mqtool raises UsageError with the reason. The error
    names all TLS files that were given, because Python does not say which file cannot be used.
    """
    monkeypatch.setattr(ssl, "create_default_context", Mock(side_effect=error))
    files = TlsFiles(Path("ca.pem"), Path("cert.pem"))
    with pytest.raises(UsageError, match=f"^cannot use the TLS files ca.pem, cert.pem: {reason}$") as raised:
        files.context()
    assert raised.value.hint == "give files in PEM form"


def test_a_tls_connection_checks_the_certificate_of_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """mqtool verifies the broker's certificate with the given CA certificate, or with the system's CA certificates, and
    ignores the common name in the broker's certificate. It presents the client's certificate, if there is one.
    """
    made = TlsFiles().context()
    assert (made.verify_mode, made.check_hostname, made.hostname_checks_common_name) == (ssl.CERT_REQUIRED, True, False)
    create = Mock()
    monkeypatch.setattr(ssl, "create_default_context", create)
    TlsFiles().context()
    TlsFiles(Path("ca.pem")).context()
    TlsFiles(cert=Path("cert.pem")).context()
    TlsFiles(cert=Path("cert.pem"), key=Path("key.pem")).context()
    assert [call.kwargs for call in create.call_args_list] == [{"cafile": ca} for ca in (None, "ca.pem", None, None)]
    loaded = [call.args for call in create.return_value.load_cert_chain.call_args_list]
    assert loaded == [(Path("cert.pem"), None), (Path("cert.pem"), Path("key.pem"))]


def test_a_client_certificate_is_used_to_log_in_if_the_url_names_no_user() -> None:
    """If a client certificate is given, and the amqps URL names no user, mqtool logs in with the certificate (SASL
    mechanism EXTERNAL). If the broker does not offer EXTERNAL, mqtool logs in as `guest`.
    """
    files = TlsFiles(cert=Path("cert.pem"))
    assert files.logs_in(parse_address("amqps://host"))
    assert not files.logs_in(parse_address("amqps://ann@host"))
    assert not files.logs_in(parse_address("amqp://host"))
    assert not TlsFiles().logs_in(parse_address("amqps://host"))
    login = CertificateFirst("guest", "guest")
    assert login.response_for(spec.Connection.Start(mechanisms=b"PLAIN EXTERNAL")) == ("EXTERNAL", b"")
    assert login.response_for(spec.Connection.Start(mechanisms=b"AMQPLAIN PLAIN")) == ("PLAIN", b"\0guest\0guest")


def test_the_hint_about_refused_access_names_the_user_of_the_certificate() -> None:
    """If a user who logged in with a client certificate has no access to a virtual host, the hint of mqtool's error
    says how to grant access. It names the user from the broker's reply, not `guest`.
    """
    address = parse_address("amqps://host/shop")
    refused = ConnectionClosedByBroker(530, "NOT_ALLOWED - access to vhost 'shop' refused for user 'orders'")
    hint = pika_errors.connecting(refused, address).hint
    assert hint is not None
    assert "grant it to user 'orders' with --configure, --write or --read of 'mqtool permission set'" in hint
    assert Access([address], TlsFiles(cert=Path("cert.pem"))).user == ""
    assert Access([address], TlsFiles()).user == "guest"


@pytest.mark.parametrize(
    ("urls", "url"),
    [
        ("localhost", "amqp://localhost/new"),
        ("127.0.0.1", "amqp://127.0.0.1/new"),
        ("localhost:5673", "amqp://localhost:5673/new"),
        ("[::1]:5673/shop", "amqp://[::1]:5673/new"),
        ("one:5672,two:5672", "amqp://one:5672/new"),
        ("ann:1,2@host:5673/shop", "amqp://ann@host:5673/new"),
        ("amqps://ann:secret@host/shop?heartbeat=5", "amqps://ann@host/new?heartbeat=5"),
        ("amqp://", "amqp://localhost/new"),
    ],
)
def test_a_url_for_another_virtual_host_reaches_the_same_broker(urls: str, url: str) -> None:
    """mqtool can derive a URL for another virtual host from a broker's URL. The derived URL has the host, port, user
    and options of the broker's URL, but no password. It begins with a scheme, even if the broker's URL has none. If
    the broker has several URLs, the first one is used.
    """
    assert in_virtual_host(urls, "new") == url
