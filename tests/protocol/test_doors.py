"""What unauthenticated clients, and pages of other sites, cannot do to the embedded broker's management API."""

import base64
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.http import http_server, route_table
from mqtool.broker.embedded.http.http_server import MAX_CONNECTIONS
from tests.brokers import large
from tests.protocol.broker_process import BrokerProcess, other_address
from tests.protocol.conftest import Api

GUEST = base64.b64encode(b"guest:guest").decode()


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(management_port=0) as broker:
        yield broker


@pytest.fixture
def api(broker: EmbeddedBroker) -> Api:
    assert broker.management_url is not None
    return Api(broker.management_url)


def address(broker: EmbeddedBroker) -> tuple[str, int]:
    assert broker.management_url is not None
    parts = urlsplit(broker.management_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def ask(
    broker: EmbeddedBroker, *headers: str, method: str = "GET", path: str = "/api/whoami", body: bytes = b""
) -> tuple[int, dict[str, Any]]:
    """Send a request unchanged; return the status and the body of the response."""
    with socket.create_connection(address(broker), timeout=15) as connection:
        lines = [f"{method} {path} HTTP/1.1", *headers, "connection: close"]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(rest) if rest else {}


LOGIN = f"authorization: Basic {GUEST}"


@pytest.mark.parametrize(("options", "status"), [((), 401), (("--guest-from-anywhere",), 200)], ids=str)
def test_guest_can_log_in_from_another_machine_only_with_guest_from_anywhere(
    tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    """Over AMQP and HTTP, the user guest can log in from another machine only if the broker was started with
    --guest-from-anywhere.
    """
    here = other_address()
    if here is None:
        pytest.skip("this machine has only a loopback address")
    with BrokerProcess(tmp_path, "--host", "0.0.0.0", "--management-port", "0", *options) as broker:
        assert Api(broker.management_url.replace("0.0.0.0", "127.0.0.1"))("GET", "whoami")[0] == 200
        assert Api(broker.management_url.replace("0.0.0.0", here))("GET", "whoami")[0] == status
        parameters = pika.URLParameters(broker.url.replace("0.0.0.0", here))
        refused = contextlib.nullcontext() if options else pytest.raises(pika.exceptions.ProbableAuthenticationError)
        with refused:
            pika.BlockingConnection(parameters).close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:15672", 200),
        ("[::1]:15672", 200),
        ("localhost:15672", 200),
        ("10.1.2.3", 200),
        ("broker:15672", 200),  # the name of a container
        ("evil.example:15672", 421),
        ("127.0.0.1.evil.example", 421),
        ("[::1", 421),
    ],
)
def test_http_requests_whose_host_header_names_another_host_are_refused(
    broker: EmbeddedBroker, host: str, status: int
) -> None:
    """The management API accepts requests whose Host header contains an IP address, `localhost`, or a name without a
    dot, such as a container's. If the header names another host, as in a DNS rebinding attack, the API responds with
    status 421.
    """
    assert ask(broker, f"host: {host}", LOGIN)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:15672", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:80", 403),
        ("http://[", 403),
    ],
)
def test_http_requests_from_pages_of_another_site_are_refused(broker: EmbeddedBroker, origin: str, status: int) -> None:
    """If the Origin header of a request names another site, the management API responds with status 403, even if the
    credentials are valid.
    """
    assert ask(broker, "host: 127.0.0.1:15672", LOGIN, f"origin: {origin}")[0] == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("none", "navigate", 200),
        ("same-origin", "cors", 200),
        ("cross-site", "navigate", 200),  # a link
        ("cross-site", "no-cors", 403),  # an image or a script
        ("same-site", "no-cors", 403),  # of a page at another port
    ],
)
def test_pages_of_another_site_cannot_load_the_management_api_as_an_image_or_a_script(
    broker: EmbeddedBroker, site: str, mode: str, status: int
) -> None:
    """If a page of another site loads a URL of the management API as an image or a script, the API responds with
    status 403. It recognizes this by the Sec-Fetch headers, because browsers send such a request with stored
    credentials but without an Origin header.
    """
    fetched = (f"sec-fetch-site: {site}", f"sec-fetch-mode: {mode}")
    assert ask(broker, "host: 127.0.0.1:15672", LOGIN, *fetched)[0] == status


def test_the_management_api_does_not_wait_for_a_body_of_16_mb(broker: EmbeddedBroker) -> None:
    """If a request announces a body of 16 MB, the management API responds without waiting for the body. The status is
    400 or, if the request contains no credentials, 401.
    """
    assert ask(broker, "content-length: 16000000", method="PUT", path="/api/queues/%2F/q")[0] == 401
    assert ask(broker, LOGIN, "content-length: 16000000", method="PUT", path="/api/queues/%2F/q")[0] == 400


def test_an_http_connection_stays_open_after_the_status_401(broker: EmbeddedBroker) -> None:
    """After the management API has responded with status 401, the next request on the same HTTP connection succeeds
    if it has valid credentials.
    """
    with socket.create_connection(address(broker), timeout=60) as connection:
        connection.sendall(b"PUT /api/queues/%2F/q HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        connection.sendall(f"GET /api/whoami HTTP/1.1\r\n{LOGIN}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("x: " + "x" * 20_000, 431),
        ("content-length: -1", 400),
        ("content-length: x", 400),
        ("transfer-encoding: chunked", 411),
    ],
)
def test_http_requests_with_an_invalid_or_unsupported_header_are_refused(
    broker: EmbeddedBroker, header: str, status: int
) -> None:
    """If a header of an HTTP request is malformed, too long or not supported (such as Transfer-Encoding), the
    management API responds with status 400, 431 or 411. It still answers later requests.
    """
    assert ask(broker, LOGIN, header)[0] == status
    assert ask(broker, LOGIN)[0] == 200


@pytest.mark.parametrize("sent", ["", "GET /api/whoami HTTP/1.1\r\n\r\n"])
def test_unauthenticated_http_connections_do_not_keep_other_clients_out(broker: EmbeddedBroker, sent: str) -> None:
    """If unauthenticated clients have opened as many HTTP connections as the broker allows, the broker closes one of
    these connections for each new one, so that clients that log in are still served.
    """
    crowd = [socket.create_connection(address(broker), timeout=60) for _ in range(MAX_CONNECTIONS)]
    for connection in crowd:
        connection.sendall(sent.encode())
        assert not sent or connection.recv(65536).startswith(b"HTTP/1.1 401")
    for _ in range(3):
        assert ask(broker, LOGIN)[0] == 200
    for connection in crowd:
        connection.close()


@large
def test_http_connections_from_one_address_do_not_displace_connections_from_another(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """If too many unauthenticated HTTP connections come from one address, the broker closes some of these
    connections, but none from another address. It logs the closed connections at most once a second.
    """
    caplog.set_level(logging.WARNING)
    crowd = [socket.create_connection(address(broker), timeout=60) for _ in range(MAX_CONNECTIONS)]
    with socket.create_connection(address(broker), timeout=60, source_address=("127.0.0.2", 0)) as other:
        started = time.monotonic()
        crowd += [socket.create_connection(address(broker), timeout=60) for _ in range(MAX_CONNECTIONS + 10)]
        assert ask(broker, LOGIN)[0] == 200  # so all connections have been accepted
        other.sendall(f"GET /api/whoami HTTP/1.1\r\n{LOGIN}\r\n\r\n".encode())
        assert other.recv(65536).startswith(b"HTTP/1.1 200")

    def logged() -> list[str]:
        return [line for line in caplog.messages if "management connections without a login" in line]

    while not logged():  # an earlier test may have logged a line in the same second
        assert time.monotonic() - started < 60
        crowd.append(socket.create_connection(address(broker), timeout=60))
        assert ask(broker, LOGIN)[0] == 200
    lines = logged()
    assert 1 <= len(lines) <= time.monotonic() - started + 2
    for connection in crowd:
        connection.close()


def test_the_number_of_logged_in_http_connections_is_limited(broker: EmbeddedBroker) -> None:
    """If authenticated clients have opened as many HTTP connections as the broker allows, the broker responds to a
    new connection with status 503 and closes it. Once these clients have disconnected, the broker serves other
    clients again.
    """
    crowd = [socket.create_connection(address(broker), timeout=60) for _ in range(MAX_CONNECTIONS)]
    for connection in crowd:
        connection.sendall(f"GET /api/whoami HTTP/1.1\r\n{LOGIN}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    with socket.create_connection(address(broker), timeout=60) as refused:  # its request need not even be read
        assert refused.recv(65536).startswith(b"HTTP/1.1 503")
    for connection in crowd:
        connection.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            if ask(broker, LOGIN)[0] == 200:
                return
        except ConnectionError:
            pass
        assert time.monotonic() < deadline


@pytest.mark.parametrize("sent", ["GET /api", f"PUT /api/vhosts/x HTTP/1.1\r\n{LOGIN}\r\ncontent-length: 9\r\n\r\n{{"])
def test_an_http_connection_with_an_incomplete_request_is_closed(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    """If the headers or the body of an HTTP request do not arrive within the time limit, the broker closes the
    connection.
    """
    monkeypatch.setattr(http_server, "_FIRST_SECONDS", 0.2)
    monkeypatch.setattr(http_server, "_BODY_SECONDS", 0.2)
    with socket.create_connection(address(broker), timeout=60) as connection:
        connection.sendall(sent.encode())
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x": 36893488147419103232}',
        '{"x": "\\ud800"}',
        f'{{"{"x" * 300}": 1}}',
        f'{{"x": {"[" * 100}1{"]" * 100}}}',
        f'{{"x": {"[" * 100_000}1{"]" * 100_000}}}',
        "[1]",
    ],
    ids=["a large integer", "a lone surrogate", "a long name", "deeply nested", "very deeply nested", "no object"],
)
def test_arguments_that_cannot_be_stored_are_refused(broker: EmbeddedBroker, api: Api, arguments: str) -> None:
    """If a queue, exchange or binding is declared over HTTP with arguments that cannot be stored, such as an integer
    of more than 64 bits or lists nested 100 levels deep, the broker responds with status 400 and creates nothing.
    """
    body = f'{{"arguments": {arguments}}}'.encode()
    headers = (LOGIN, f"content-length: {len(body)}")
    for method, path in (
        ("PUT", "/api/queues/%2F/new"),
        ("PUT", "/api/exchanges/%2F/new"),
        ("POST", "/api/bindings/%2F/e/amq.direct/e/amq.fanout"),
    ):
        assert ask(broker, *headers, method=method, path=path, body=body)[0] == 400
    assert api("GET", "queues/%2F/new")[0] == 404
    assert api("GET", "exchanges/%2F/new")[0] == 404
    assert api("GET", "bindings/%2F")[1] == []
    assert api("PUT", "queues/%2F/" + "x" * 300)[0] == 400


def test_an_expensive_regular_expression_does_not_block_the_broker(broker: EmbeddedBroker, api: Api) -> None:
    """If matching a regular expression by backtracking would take forever, the broker still answers a client that
    filters the list of queues by this expression or uses it in a permission.
    """
    evil = "(a|a)*(a+)+$"
    api("PUT", "queues/%2F/" + "a" * 200 + "b")
    assert api("GET", f"queues?page=1&name={quote(evil)}&use_regex=true")[1]["filtered_count"] == 0
    api("PUT", "permissions/%2F/guest", {"configure": evil, "write": evil, "read": evil})
    channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
        channel.queue_declare("a" * 200 + "b")


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "^(?!amq)"])
def test_an_invalid_or_unsupported_regular_expression_is_refused(api: Api, pattern: str) -> None:
    """If a regular expression in a permission, or in the filter of a request for the list of queues, is invalid or
    not supported, the management API responds with status 400.
    """
    status, error = api("PUT", "permissions/%2F/guest", {"configure": pattern, "write": "", "read": ""})
    assert status == 400
    assert "invalid regular expression" in error["reason"]
    status, error = api("GET", f"queues?page=1&name={quote(pattern)}&use_regex=true")
    assert status == 400


@pytest.mark.parametrize("pattern", [r"(?i)(\pL){300}x", "a" * 1001], ids=["large when compiled", "long"])
def test_a_regular_expression_that_needs_a_lot_of_memory_is_refused_as_a_filter(api: Api, pattern: str) -> None:
    """If a list request filters by a regular expression that has more than 1,000 characters, or takes more than 128
    KiB when compiled, the management API responds with status 400.
    """
    status, error = api("GET", f"queues?page=1&name={quote(pattern)}&use_regex=true")
    assert status == 400
    assert "invalid regular expression" in error["reason"]


@large
def test_a_list_of_5000_queues_does_not_hold_up_other_clients(tmp_path: Path) -> None:
    """While the management API lists 5,000 queues for one client, it answers requests of other clients on other
    connections.
    """
    with BrokerProcess(tmp_path, "--management-port", "0") as broker, ThreadPoolExecutor() as pool:
        queues = [{"name": f"queue-{number}", "vhost": "/", "durable": False} for number in range(5_000)]
        assert Api(broker.management_url)("POST", "definitions", {"queues": queues})[0] == 204
        where = urlsplit(broker.management_url).netloc
        headers = {"authorization": f"Basic {GUEST}"}
        lists, others = HTTPConnection(where, timeout=30), HTTPConnection(where, timeout=30)

        def answered() -> int:
            """List all queues, and return how many requests of the other client are answered before the list is."""
            lists.request("GET", "/api/queues?sort=name", headers=headers)
            listed, count = pool.submit(lists.getresponse), 0
            while not listed.done():
                others.request("GET", "/api/whoami", headers=headers)
                assert json.loads(others.getresponse().read())["name"] == "guest"
                count += 1
            assert len(json.loads(listed.result().read())) == 5_000
            return count

        assert any(answered() > 2 for _ in range(5))  # if the machine stands still, the other client may ask too late


@large
def test_repeated_internal_errors_are_logged_once_a_second(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If internal errors occur often in the management API, the broker logs only about one error per second, with the
    number of errors that it did not log.
    """
    caplog.set_level(logging.WARNING)

    def fail(call: object) -> None:
        raise ArithmeticError(call)

    monkeypatch.setitem(route_table._ROUTES["whoami"], "GET", route_table.HttpRoute(route_table.anyone, fail))
    started = time.monotonic()
    while not any("more like this" in record.getMessage() for record in caplog.records):
        assert api("GET", "whoami")[0] == 500
        assert time.monotonic() - started < 30
    lines = [record for record in caplog.records if record.getMessage().startswith("management: ")]
    assert 2 <= len(lines) <= time.monotonic() - started + 1
