"""AMQP URLs."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import spec
from pika.exceptions import ConnectionClosedByBroker

from mqtool.address import Address, TlsFiles, parse_address, parse_addresses
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
    """A broker URL is parsed into host, port, virtual host, user, password and options. RabbitMQ's defaults replace
    missing parts.
    """
    found = parse_address(url)
    assert found == address._replace(names_user="@" in url)


@pytest.mark.parametrize(
    ("urls", "hosts"),
    [
        ("amqp://one,amqp://two:1,amqps://three", ["one", "two", "three"]),
        (" amqp://one , amqp://two ,", ["one", "two"]),
        ("amqp://one", ["one"]),
        ("one:5673, two", ["one", "two"]),
    ],
)
def test_commas_separate_the_nodes_of_a_cluster(urls: str, hosts: list[str]) -> None:
    """Commas separate the URLs of a cluster's nodes. Spaces around the commas are ignored."""
    assert [address.host for address in parse_addresses(urls)] == hosts


@pytest.mark.parametrize(
    "url",
    ["", ",", " ", "local host", "localhost:port", "amqp:localhost", "http://localhost", "amqp://one,two", "amqp://localhost:0",
     "amqp://localhost:65536", "amqp://localhost:-1", "amqp://localhost:x", "amqp://[::1", "amqp://localhost/#v",
     "amqp://localhost?heartbeat=", "amqp://localhost?heartbeat=-1", "amqp://localhost?heartbeat=65536",
     "amqp://localhost?connection_timeout=0", "amqp://localhost?colour=red"],
)  # fmt: skip
def test_an_invalid_url_is_a_usage_error(url: str) -> None:
    """An invalid broker URL, for example one with the scheme http, port 65536 or an unknown option, raises
    UsageError.
    """
    with pytest.raises(UsageError):
        parse_addresses(url)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(words, words, words)
def test_percent_encoded_parts_of_a_url_are_decoded(user: str, password: str, vhost: str) -> None:
    """The user, password and virtual host in a URL can contain any characters if they are percent-encoded."""
    place = "/".join([f"{quote(user, safe='')}:{quote(password, safe='')}@localhost", quote(vhost, safe="")])

    address = parse_address(f"amqp://{place}")

    assert (address.user, address.password, address.virtual_host) == (user, password, vhost)


@example("", "://")
@given(st.sampled_from(["amqp://", ""]), st.text("abc:/?#@[],.% 019", max_size=12))
def test_a_password_in_a_url_is_never_shown(scheme: str, rest: str) -> None:
    """A password in a URL never appears in the printed address or in an error, even if the password contains characters
    of URL syntax.
    """
    word = "WORD"
    try:
        address = parse_address(f"{scheme}me:{word}{rest}@localhost")
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


def test_a_tls_key_needs_its_certificate(tmp_path: Path) -> None:
    """If a TLS key is given without its certificate, mqtool raises UsageError."""
    with pytest.raises(UsageError, match="needs its certificate"):
        TlsFiles(key=tmp_path / "key.pem").context()


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
    """A user who logged in with a client certificate may have no access to a virtual host. The hint of mqtool's error
    is then a command that grants access to the user whom the broker's reply names, not to `guest`.
    """
    address = parse_address("amqps://host/shop")
    refused = ConnectionClosedByBroker(530, "NOT_ALLOWED - access to vhost 'shop' refused for user 'orders'")
    hint = pika_errors.connecting(refused, address).hint
    assert hint == "as an administrator: mqtool permission set --vhost=shop orders"
    assert Access([address], TlsFiles(cert=Path("cert.pem"))).user == ""
    assert Access([address], TlsFiles()).user == "guest"
