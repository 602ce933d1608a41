"""The tables of docs/reference/embedded-broker.md: every row is true, and nothing is missing."""

import http.client
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pika
import pytest
from pamqp import commands
from pamqp.base import Frame
from pika.exceptions import AMQPError, ChannelClosedByBroker

from mqtool.broker.embedded.http.route_table import paths
from mqtool.broker.embedded.model.declarations import CONSUMER_ARGUMENTS
from mqtool.broker.embedded.model.exchange import types_of
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import OFFSET, QUEUE_ARGUMENTS
from tests.brokers import TestBroker, on_any_broker
from tests.protocol.conftest import Api
from tests.protocol.raw_client import RawClient, raw_frame

ROOT = Path(__file__).parents[2]
KINDS = ("classic", "quorum", "stream")

pytestmark = pytest.mark.own_vhost("the tests leave whatever the table names")


@pytest.fixture(autouse=True)
def _as_3_10(broker: TestBroker) -> None:
    if broker.differs_since("3.11", "it has, and lacks, other things"):
        pytest.skip("the table is of RabbitMQ 3.10")


def table(heading: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a table below a heading, without the header row; of all tables there if the number is -1."""
    page = (ROOT / "docs" / "reference" / "embedded-broker.md").read_text()
    level = re.findall(rf"^(#+) {re.escape(heading)}$", page, re.MULTILINE)[0]
    section = re.split(rf"^{level} ", page.split(f"{level} {heading}\n")[1], flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    chosen = tables if number < 0 else [tables[number]]
    rows = [line for each in chosen for line in each.splitlines()[2:]]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


# -- arguments

VALUES: dict[str, Any] = {
    "x-message-ttl": 600_000,
    "x-expires": 600_000,
    "x-max-length": 10,
    "x-max-length-bytes": 1_000_000,
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": "amq.fanout",
    "x-dead-letter-routing-key": "dead",
    "x-dead-letter-strategy": "at-least-once",
    "x-delivery-limit": 5,
    "x-single-active-consumer": False,
    "x-max-priority": 3,
    "x-max-age": "1D",
    "x-stream-max-segment-size-bytes": 1_000_000,
    "x-queue-mode": "lazy",
    "x-queue-version": 1,
    "x-max-in-memory-length": 10,
    "x-max-in-memory-bytes": 1_000_000,
    "x-quorum-initial-group-size": 1,
    "x-initial-cluster-size": 1,
    "x-queue-leader-locator": "client-local",
    "x-queue-master-locator": "random",
}


def declare_with_everything(api: Api, vhost: str, kind: str) -> None:
    """A queue of this type, with all arguments that it may have."""
    column = KINDS.index(kind) + 1
    rows = [row for row in table("Arguments of queues") if row[0] != "x-queue-type"]
    taken = {row[0]: VALUES[row[0]] for row in rows if row[column] != "refused"}
    body = {"durable": True, "arguments": {"x-queue-type": kind, **taken}}
    assert api("PUT", f"queues/{vhost}/{kind}", body) == (201, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_table_of_queue_arguments_is_correct(api: Api, vhost: str, kind: str) -> None:
    """Each queue type accepts or refuses each queue argument as docs/reference/embedded-broker.md says. If it refuses
    an argument, the error names the argument.
    """
    rows = table("Arguments of queues")
    assert {row[0] for row in rows} == set(QUEUE_ARGUMENTS)
    declare_with_everything(api, vhost, kind)
    for argument, *here in rows:
        if here[KINDS.index(kind)] == "refused":
            arguments = {"x-queue-type": kind, "x-dead-letter-exchange": "x", argument: VALUES[argument]}
            if kind == "stream" and argument != "x-dead-letter-exchange":
                del arguments["x-dead-letter-exchange"]
            status, answer = api("PUT", f"queues/{vhost}/{kind}-refused", {"durable": True, "arguments": arguments})
            assert (status, f"'{argument}'" in answer["reason"]) == (400, True), (argument, answer)


def test_the_documented_table_of_consumer_arguments_is_correct(
    api: Api, vhost: str, connection: pika.BlockingConnection
) -> None:
    """For each queue type, basic.consume accepts or refuses each consumer argument as docs/reference/embedded-broker.md
    says. For a refused argument, the broker closes the channel with error 406.
    """
    rows = table("Arguments of consumers")
    assert {row[0] for row in rows} == {*CONSUMER_ARGUMENTS, OFFSET}
    values = {"x-priority": 1, "x-cancel-on-ha-failover": True, OFFSET: "first"}
    for kind in KINDS:
        declare_with_everything(api, vhost, kind)
        for argument, *here in rows:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=1)
            refused = 0
            try:
                channel.basic_consume(kind, print, arguments={argument: values[argument]})
                channel.close()
            except ChannelClosedByBroker as error:
                refused = error.reply_code
            assert refused == (406 if here[KINDS.index(kind)] == "refused" else 0), (kind, argument)


def test_every_argument_documented_as_supported_is_mentioned_in_another_test_file() -> None:
    """Each queue or consumer argument that docs/reference/embedded-broker.md calls supported is mentioned in at least
    one conversation, or file of tests/protocol other than test_features.py, so that it is probably tested there.
    """
    here = Path(__file__)
    files = [*here.parent.glob("test_*.py"), *(here.parents[1] / "conversations").glob("*.txt")]
    texts = [path.read_text() for path in files if path != here]
    for heading in ("Arguments of queues", "Arguments of consumers"):
        for argument, *kinds in table(heading):
            names = argument, f"{argument.removeprefix('x-').replace('-', '_')}="
            assert "yes" not in kinds or any(name in text for text in texts for name in names), argument


def test_the_documented_table_of_exchanges_is_correct(broker: TestBroker, api: Api, vhost: str) -> None:
    """The broker supports exactly the exchange types that docs/reference/embedded-broker.md lists as supported. It
    accepts valid values of the arguments alternate-exchange and x-match, and responds to an invalid value with status
    400. The other arguments in the page's table are tested in test_delayed.py and test_routing.py.
    """
    known = set()
    for names, here in table("Exchanges"):
        for kind in names.split(", "):
            known |= {kind} if here.startswith("yes") else set()
            arguments = {"x-delayed-type": "topic"} if kind == "x-delayed-message" else {}
            status = api("PUT", f"exchanges/{vhost}/{kind}", {"type": kind, "durable": True, "arguments": arguments})[0]
            if "plugin" not in here or broker.kind == "embedded":
                assert (status == 201) is here.startswith("yes"), (kind, status)
    assert known == set(types_of(PROFILES[Like.V3_10]))
    api("PUT", f"queues/{vhost}/q", {"durable": True})
    arguments = {row[0] for row in table("Exchanges", 1)}
    assert arguments == {
        *("alternate-exchange", "x-delayed-type", "x-match", "hash-header", "hash-property", "x-recent-history-length")
    }
    for value, status in (("amq.fanout", 201), (1, 400)):
        body = {"type": "direct", "durable": True, "arguments": {"alternate-exchange": value}}
        assert api("PUT", f"exchanges/{vhost}/alternate-{status}", body)[0] == status
    matches = re.findall(r"\b(?:all|any)[-a-z]*", table("Exchanges", 1)[-1][1])
    for value, status in ((matches[0], 201), (matches[1], 201), (matches[2], 201), (matches[3], 201), ("most", 400)):
        body = {"arguments": {"x-match": value, "a": 1}}
        assert api("POST", f"bindings/{vhost}/e/headers/q/q", body)[0] == status, value


# -- methods


def amqp_name(method: type[Frame] | Frame) -> str:
    """A method as AMQP spells it: Basic.RecoverAsync is basic.recover-async."""
    owner, _, name = str(method.name).partition(".")
    return f"{owner.lower()}.{re.sub('(?<=[a-z])(?=[A-Z])', '-', name).lower()}"


class Recorder(RawClient):
    """Records which methods were sent and received."""

    def __init__(self, url: str, seen: set[str]) -> None:
        self.seen = seen
        super().__init__(url)

    def send(self, method: Frame, channel: int = 1) -> None:
        self.seen.add(amqp_name(method))
        super().send(method, channel)

    def receive(self) -> Any:
        got = super().receive()
        if isinstance(got, Frame):
            self.seen.add(amqp_name(got))
        return got

    def publish(self, exchange: str, routing_key: str, **flags: bool) -> None:
        """A message with an empty body."""
        self.send(commands.Basic.Publish(exchange=exchange, routing_key=routing_key, **flags))
        self.socket.sendall(raw_frame(2, 1, b"\x00\x3c" + bytes(12)))

    def call(self, method: Frame) -> Any:
        """Send a method and return its reply; deliveries that arrive meanwhile are stored."""
        self.send(method)
        replies = {reply.replace(".", "") for reply in method.valid_responses}
        while True:
            got = self.receive()
            assert not isinstance(got, commands.Channel.Close | commands.Connection.Close), (method, got)
            if isinstance(got, Frame) and str(got.name).replace(".", "") in replies:
                return got


def play(url: str, seen: set[str]) -> None:
    """Use every method that the broker supports."""
    queue, basic, exchange = commands.Queue, commands.Basic, commands.Exchange
    with Recorder(url, seen) as client:
        client.call(queue.Declare(queue="q", durable=True))
        client.call(exchange.Declare(exchange="x", exchange_type="fanout"))
        for bind, unbind in ((exchange.Bind, exchange.Unbind), (queue.Bind, queue.Unbind)):
            ends = {"destination": "amq.fanout", "source": "x"} if bind is exchange.Bind else {"queue": "q"}
            ends |= {} if bind is exchange.Bind else {"exchange": "x"}
            client.call(bind(**ends))
            client.call(unbind(**ends))
        client.call(commands.Channel.Flow(active=True))
        client.call(basic.Get(queue="q"))
        for _ in range(4):
            client.publish("", "q")
        client.send(basic.Ack(client.call(basic.Get(queue="q")).delivery_tag))
        client.send(basic.Nack(client.call(basic.Get(queue="q")).delivery_tag))
        client.send(basic.Reject(client.call(basic.Get(queue="q")).delivery_tag))
        client.send(basic.RecoverAsync(requeue=True))
        client.call(basic.Recover(requeue=True))
        client.call(basic.Qos(prefetch_count=1))
        client.call(basic.Consume(queue="q", consumer_tag="t"))
        while "basic.deliver" not in seen:
            client.receive()
        client.call(basic.Cancel(consumer_tag="t"))
        client.call(queue.Purge(queue="q"))
        client.call(commands.Tx.Select())
        client.call(commands.Tx.Commit())
        client.call(commands.Tx.Rollback())
        client.call(commands.Channel.Close(0, "", 0, 0))
        client.call(commands.Channel.Open())
        client.call(commands.Confirm.Select())
        client.publish("", "nowhere", mandatory=True)
        while "basic.return" not in seen:
            client.receive()
        client.call(queue.Delete(queue="q"))
        client.call(exchange.Delete(exchange="x"))
        client.socket.sendall(raw_frame(1, 1, b"\x00\x1e\x00\x0a" + b"\x02/x" + b"\x00"))
        if client.read(14)[7:11] == b"\x00\x1e\x00\x0b":
            seen.add("access.request")
        client.send(commands.Connection.UpdateSecret("secret", "renewed"), 0)
        client.expect(commands.Connection.UpdateSecretOk)
        client.send(commands.Connection.Close(200, "", 0, 0), 0)
        client.expect(commands.Connection.CloseOk)


@pytest.mark.filterwarnings("ignore:This command is deprecated")
def test_the_documented_table_of_amqp_methods_is_correct(amqp_url: str, connection: pika.BlockingConnection) -> None:
    """docs/reference/embedded-broker.md lists all methods of AMQP 0-9-1. The broker supports exactly the methods that
    this page lists as supported.
    """
    seen: set[str] = set()
    play(amqp_url, seen)
    # An alarm would block the publishers of all other tests.
    if connection._impl.server_capabilities["connection.blocked"]:
        seen |= {"connection.blocked", "connection.unblocked"}
    replies = {reply for method in commands.INDEX_MAPPING.values() for reply in method.valid_responses}
    names = {amqp_name(method) for method in commands.INDEX_MAPPING.values() if method.name not in replies}
    rows = {f"{each[0]}.{name}": each[2] for each in table("Methods of AMQP 0-9-1") for name in each[1].split(", ")}
    assert set(rows) == {*names, "access.request"}
    used = {name for name, here in rows.items() if here in ("yes", "no effect")}
    assert used == {name for name in seen if not name.endswith(("-ok", "-empty"))}


REFUSED: dict[str, Callable[[RawClient], None]] = {
    "immediate": lambda client: Recorder.publish(client, "", "q", immediate=True),  # type: ignore[arg-type]
    "a prefetch-size": lambda client: client.send(commands.Basic.Qos(prefetch_size=1)),
    "requeue false": lambda client: client.send(commands.Basic.Recover(requeue=False)),
    "no-ack": lambda client: client.send(commands.Basic.Consume(queue="stream", no_ack=True)),
    "if-unused or if-empty": lambda client: client.send(commands.Queue.Delete(queue="quorum", if_empty=True)),
    "active false": lambda client: client.send(commands.Channel.Flow(active=False)),
}


def test_methods_that_are_not_implemented_close_the_connection(api: Api, vhost: str, amqp_url: str) -> None:
    """If a client uses a method, flag or value that docs/reference/embedded-broker.md calls unsupported, the broker
    closes the connection with 540 NOT_IMPLEMENTED.
    """
    for kind in ("quorum", "stream"):
        api("PUT", f"queues/{vhost}/{kind}", {"durable": True, "arguments": {"x-queue-type": kind}})
    rows = table("Methods of AMQP 0-9-1", 1)
    assert [row[1] for row in rows] == list(REFUSED)
    for _, name, _ in rows:
        with RawClient(amqp_url) as client:
            client.send(commands.Basic.Qos(prefetch_count=1))
            client.expect(commands.Basic.QosOk)
            REFUSED[name](client)
            assert client.closed_with().startswith("540 NOT_IMPLEMENTED"), name


# -- the management API


class Answered(NamedTuple):
    """A response: its status, the methods that it allows, and its body."""

    status: int
    allow: set[str]
    body: bytes


class Browser:
    """Sends requests to the management API, each on a new connection unless `on_same` is set."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.partition("//")[2], timeout=60)

    def ask(self, method: str, path: str, body: object = None, *, on_same: bool = False) -> Answered:
        if not on_same:
            self._connection.close()
        headers = {"authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "content-type": "application/json"}
        text = None if body is None else json.dumps(body)
        self._connection.request(method, f"/api/{path}", text, headers)
        answer = self._connection.getresponse()
        return Answered(answer.status, set((answer.getheader("allow") or "").split(", ")), answer.read())


MESSAGE = {"routing_key": "k", "properties": {}, "payload": "", "payload_encoding": "string"}
POLICY = {"pattern": "^none$", "definition": {"max-length": 5}, "apply-to": "queues"}
TOPICS = {"exchange": "amq.topic", "write": ".*", "read": ".*"}
BODIES: dict[str, object] = {
    "PUT users/USER": {"password": "secret", "tags": "administrator"},
    "PUT vhosts/VHOST": {},
    "POST vhosts/VHOST/start/NODE": {},
    "PUT permissions/VHOST/USER": {"configure": ".*", "write": ".*", "read": ".*"},
    "PUT topic-permissions/VHOST/USER": TOPICS,
    "PUT topic-permissions/VHOST/USER/EXCHANGE": TOPICS,
    "PUT vhost-limits/VHOST/LIMIT": {"value": 100},
    "PUT user-limits/USER/LIMIT": {"value": 100},
    "POST users/bulk-delete": {"users": []},
    "POST definitions": {},
    "POST definitions/VHOST": {},
    "POST all-configuration": {},
    "PUT policies/VHOST/POLICY": POLICY,
    "PUT operator-policies/VHOST/POLICY": POLICY,
    "PUT parameters/COMPONENT/VHOST/PARAMETER": {"value": {"max-connections": 100}},
    "PUT global-parameters/NAME": {"value": 1},
    "PUT exchanges/VHOST/EXCHANGE": {"type": "direct", "durable": True},
    "PUT queues/VHOST/QUEUE": {"durable": True},
    "POST bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION": {"routing_key": "k"},
    "POST exchanges/VHOST/EXCHANGE/publish": MESSAGE,
    "POST queues/VHOST/QUEUE/get": {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"},
    "POST queues/VHOST/QUEUE/actions": {"action": "sync"},
    "PUT feature-flags/FLAG/enable": {},
    "PUT cluster-name": {"name": "tests"},
    "POST rebalance/queues": {},
}
#: On RabbitMQ, these would affect other tests.
SPARED = {"DELETE reset", "DELETE reset/NODE", "POST rebalance/queues", "PUT cluster-name"}
#: RabbitMQ answers 500 if a connection of the user has just been closed, so this is requested before that.
FIRST = "DELETE connections/username/USER"


def later() -> dict[str, list[str]]:
    """The paths of later versions and of plugins, with their methods, from a table of their own."""
    return {path: methods.split(", ") for path, methods, *_ in table("Paths of later versions and of plugins")}


@pytest.fixture
def names(api: Api, broker: TestBroker) -> Iterator[dict[str, str]]:
    """The names to insert into the paths."""
    own = f"table-{uuid.uuid4().hex[:8]}"
    yield {
        "NODE": api("GET", "nodes")[1][0]["name"],
        "FLAG": api("GET", "feature-flags")[1][0]["name"],
        **dict.fromkeys(("VHOST", "USER", "POLICY", "NAME", "EXCHANGE", "QUEUE", "DESTINATION"), own),
        **{"TYPE": "q", "KEY": "k", "LIMIT": "max-connections", "COMPONENT": "vhost-limits", "PARAMETER": "limits"},
        "PORT": str(next(each["port"] for each in api("GET", "overview")[1]["listeners"])),
        **{"PROTOCOL": "amqp", "NUMBER": "1", "UNIT": "weeks", "TABLE": "none"},
        **{"CONNECTION": "none", "CHANNEL": "none"},
    }
    api("DELETE", f"vhosts/{own}")
    api("DELETE", f"users/{own}")


def connected(broker: TestBroker, api: Api, names: dict[str, str]) -> pika.BlockingConnection:
    """Open a connection, wait until the API lists it and its channel, and put the names of both into `names`."""
    parts, name = urlsplit(broker.url), names["USER"]
    connection = pika.BlockingConnection(
        pika.URLParameters(f"amqp://{name}:secret@{parts.netloc.split('@')[1]}/{name}")
    )
    connection.channel()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection.process_data_events(0.01)
        channels, opened = api("GET", f"vhosts/{name}/channels")[1], api("GET", f"connections/username/{name}")[1]
        if len(channels) == len(opened) == 1 and channels[0].get("connection_details"):
            names["CHANNEL"], names["CONNECTION"] = channels[0]["name"], opened[0]["name"]
            return connection
    pytest.fail("the API does not list the connection, or lists one that is gone")


def filled(path: str, names: dict[str, str]) -> str:
    """Return a path with its placeholders replaced."""
    return "/".join(quote(names.get(each, each), safe="") for each in path.split("/"))


def test_the_documented_table_of_management_paths_is_complete(broker: TestBroker, names: dict[str, str]) -> None:
    """docs/reference/embedded-broker.md lists every path of the management API, with the HTTP methods that the broker
    allows.
    """
    rows = table("Paths of the management API", -1)
    there = {path: methods.split(", ") for path, methods, here in rows if here != "missing"}
    assert {**there, **later()} == {
        path: [each for each in methods if each != "HEAD"]
        for path, methods in paths().items()
        if not path.startswith("mqtool/")
    }
    browser = Browser(broker.management)
    for path, methods, here in rows:
        allowed = browser.ask("OPTIONS", filled(path, names))
        if here == "missing" and broker.kind == "embedded":
            assert allowed.status == 404, path
        else:
            assert allowed.allow - {"HEAD", "OPTIONS"} == set(methods.split(", ")), path
            assert ("HEAD" in allowed.allow) is ("GET" in allowed.allow and "-limits" not in path), path
    assert browser.ask("HEAD", "overview").body == b""
    assert browser.ask("GET", "whoami", on_same=True).status == 200, "the answer to HEAD had a body"
    assert browser.ask("POST", "overview", {}).status == 405


@on_any_broker
def test_every_documented_request_of_later_versions_and_plugins_succeeds(
    broker: TestBroker, api: Api, names: dict[str, str]
) -> None:
    """A request for each path in the section "Paths of later versions and of plugins" of
    docs/reference/embedded-broker.md returns 200 or 204, or 404 where the page names a later version than the
    broker's. Where the page says "always empty", the response is an empty list. A request whose path names a virtual
    host that does not exist returns 404.
    """
    browser = Browser(broker.management)
    assert browser.ask("PUT", filled("users/USER", names), BODIES["PUT users/USER"]).status == 201
    assert browser.ask("PUT", filled("vhosts/VHOST", names), {}).status == 201
    assert (
        browser.ask("PUT", filled("permissions/VHOST/USER", names), BODIES["PUT permissions/VHOST/USER"]).status == 201
    )
    rows = table("Paths of later versions and of plugins")
    with connected(broker, api, names):
        for path, methods, version, here in rows:
            is_there = not version.startswith("in ") or broker.differs_since(
                version.removeprefix("in "), "it has the path"
            )
            for method in methods.split(", "):
                answer = browser.ask(method, filled(path, names))
                assert answer.status in ((200, 204) if is_there else (404,)), (method, path, answer)
                assert here != "always empty" or answer.body == b"[]"
    for path, methods, *_ in rows:
        for method in methods.split(", ") if "VHOST" in path else ():
            assert browser.ask(method, filled(path, {"VHOST": "none"})).status == 404, (method, path)


def test_every_documented_request_of_the_management_api_succeeds(
    broker: TestBroker, api: Api, names: dict[str, str]
) -> None:
    """docs/reference/embedded-broker.md lists requests (paths and methods) to the management API. RabbitMQ and the
    embedded broker respond to each of them with status 200, 201 or 204, unless the page marks the path as missing.
    """
    rows = [row for row in table("Paths of the management API", -1) if row[2] != "missing"]
    changes = [f"{method} {path}" for path, methods, _ in rows for method in methods.split(", ") if method != "GET"]
    assert {each for each in changes if not each.startswith("DELETE")} == set(BODIES)
    browser = Browser(broker.management)

    def ask(request: str, body: object = None) -> Answered:
        method, path = request.split()
        answer = browser.ask(method, filled(path, names), body)
        if (
            answer.status == 503 and path == "health/checks/virtual-hosts"
        ):  # other tests create and delete virtual hosts meanwhile
            assert not {broker.vhost, names["VHOST"]} & set(json.loads(answer.body)["virtual-hosts"]), answer
        else:
            assert answer.status in (200, 201, 204), (request, answer)
        return answer

    spared = {FIRST, *SPARED} if broker.kind == "rabbitmq" else {FIRST}
    for change in [each for each in BODIES if each not in spared]:
        ask(change, BODIES[change])
    with suppress(AMQPError), connected(broker, api, names):
        for path, _, here in [row for row in rows if "GET" in row[1]]:
            found = ask(f"GET {path}").body
            # On RabbitMQ, such a list may have an entry for each plugin.
            assert here != "always empty" or found == b"[]" or broker.kind == "rabbitmq", path
        ask(FIRST)
    for change in [each for each in reversed(changes) if each.startswith("DELETE") and each not in spared]:
        with suppress(AMQPError), connected(broker, api, names) if "CONNECTION" in change else nullcontext():
            ask(change)
