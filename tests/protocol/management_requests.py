"""Requests to the management API, and what RabbitMQ answers: status, error and reason, or the body's fields and types.

    python -m tests.protocol.management_requests MANAGEMENT_URL >tests/recordings/VERSION/management.ndjson

`make record` runs this on a live RabbitMQ. `test_management_recordings.py` compares the embedded broker with what was
recorded. The requests run in the order in which they stand here, in a virtual host of their own, whose name is `V` in
paths, bodies and recordings.
"""

import base64
import json
import re
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple


class Request(NamedTuple):
    """A request; a body is sent as JSON, or as it is if it is a string."""

    method: str
    path: str
    body: Any = None


def _binding(key: str) -> str:
    return f"bindings/V/e/amq.topic/q/q/{key}"


def _publish(**changes: Any) -> Request:
    body = {"properties": {}, "routing_key": "q", "payload": "x", "payload_encoding": "string", **changes}
    return Request("POST", "exchanges/V/amq.default/publish", body)


def _get(queue: str, **changes: Any) -> Request:
    body = {"ackmode": "ack_requeue_true", "count": 1, "encoding": "auto", **changes}
    return Request("POST", f"queues/V/{queue}/get", body)


REQUESTS = (
    # Declarations; `[]` is an empty object for RabbitMQ, as PHP and pyrabbit2 send it.
    Request("PUT", "queues/V/q", {"durable": True, "arguments": []}),
    Request("PUT", "queues/V/q", {"durable": True, "arguments": {}}),
    Request("PUT", "queues/V/q", {"durable": False}),
    Request("PUT", "queues/V/quorum", {"durable": True, "arguments": {"x-queue-type": "quorum"}}),
    Request("PUT", "queues/V/stream", {"durable": True, "arguments": {"x-queue-type": "stream"}}),
    Request("PUT", "queues/V/bad", {"arguments": [1]}),
    Request("PUT", "queues/V/bad", {"arguments": "x"}),
    Request("PUT", "queues/V/bad", {"arguments": {"x-message-ttl": "5"}}),
    Request("PUT", "queues/V/bad", {"durable": "maybe"}),
    Request("PUT", "queues/V/bad", "{"),
    Request("PUT", "queues/nope/q", {"durable": True}),
    Request("PUT", "queues/V/bad", {"node": "nope@x"}),
    Request("PUT", "queues/V/amq.q", {}),
    Request("PUT", "exchanges/V/x", {"type": "topic", "arguments": []}),
    Request("PUT", "exchanges/V/x", {"type": "fanout"}),
    Request("PUT", "exchanges/V/amq.x", {"type": "topic"}),
    Request("PUT", "exchanges/V/y", {"type": "nosuch"}),
    Request("PUT", "exchanges/V/y", {"durable": True}),
    # Bindings, found by a key that is encoded once or twice
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "k.*", "arguments": []}),
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "a b"}),
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "x#y"}),
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "p%q"}),
    Request("POST", "bindings/V/e/amq.topic/q/q", {}),
    Request("GET", _binding("k.%2A")),
    Request("GET", _binding("k.%252A")),
    Request("GET", _binding("a%20b")),
    Request("GET", _binding("a%2520b")),
    Request("GET", _binding("x%23y")),
    Request("GET", _binding("p%25q")),
    Request("GET", _binding("p%2525q")),
    Request("GET", _binding("~")),
    Request("GET", _binding("nope")),
    Request("DELETE", _binding("k.%2A")),
    Request("DELETE", _binding("k.%252A")),
    Request("DELETE", _binding("a%2520b")),
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "h", "arguments": {"n": 1}}),
    Request("GET", _binding("h~hadFaw")),
    Request("POST", "bindings/V/e/amq.topic/q/q", {"routing_key": "h", "arguments": {"n": [1, "a", {"z": 1.5}]}}),
    Request("GET", _binding("h~CkzUrQ")),
    Request("DELETE", _binding("h~hadFaw")),
    Request("DELETE", _binding("h~CkzUrQ")),
    Request("POST", "bindings/V/e/amq.topic/q/nope", {"routing_key": "k"}),
    Request("POST", "bindings/V/e/nope/q/q", {"routing_key": "k"}),
    Request("POST", "bindings/V/e/amq.default/q/q", {"routing_key": "k"}),
    Request("GET", "bindings/V?page=1"),
    # Publishing
    _publish(),
    _publish(payload="y" * (2 << 20)),
    _publish(payload=5),
    _publish(payload_encoding="x"),
    _publish(payload_encoding="base64", payload="!"),
    _publish(properties={"headers": []}),
    _publish(properties={"delivery_mode": "2"}),
    _publish(properties={"expiration": 1000}),
    _publish(properties={"message_id": 5}),
    _publish(properties={"expiration": "x"}),
    _publish(properties={"user_id": "somebody"}),
    _publish(properties={"headers": {"n": None}}),
    _publish(properties={"headers": {"n": [1, None]}}),
    _publish(routing_key="nope"),
    Request("POST", "exchanges/V/nope/publish", _publish().body),
    Request("POST", "exchanges/nope/amq.default/publish", _publish().body),
    Request("POST", "exchanges/V/amq.default/publish", {"routing_key": "q"}),
    # Getting
    _get("q", count=2),
    _get("q", count=1, truncate=1),
    _get("q", ackmode="nope"),
    _get("q", encoding="nope"),
    _get("q", count="x"),
    _get("nope"),
    _get("stream"),
    Request("POST", "queues/V/q/get", {"count": 1}),
    Request("DELETE", "queues/V/q/contents"),
    Request("DELETE", "queues/V/nope/contents"),
    # Lists: pages, columns, patterns
    Request("GET", "queues/V?page=1&page_size=501"),
    Request("GET", "queues/V?page=1&page_size=500&columns=name"),
    Request("GET", "queues/V?page=9&page_size=5"),
    Request("GET", "queues/V?page=x"),
    Request("GET", "queues/V?page=0"),
    Request("GET", "queues/V?page=1&name=^Q$&use_regex=true&columns=name"),
    Request("GET", "queues/V?page=1&name=(&use_regex=true&columns=name"),
    Request("GET", "queues/V?columns=name,durable"),
    Request("GET", "queues/V?columns=bogus"),
    Request("GET", "queues/V/q?columns=name,durable"),
    Request("GET", "queues/V/q?disable_stats=true"),
    Request("GET", "queues/V/quorum?disable_stats=true"),
    Request("GET", "queues/V/stream?disable_stats=true"),
    Request("GET", "queues/V?disable_stats=true"),
    Request("GET", "exchanges/V/x?columns=name,type"),
    Request("GET", "vhosts/V?columns=name"),
    Request("GET", "users/guest?columns=name"),
    Request("GET", "queues/V/nope"),
    Request("GET", "queues/nope/q"),
    Request("GET", "exchanges/V/nope"),
    Request("GET", "exchanges/V/x"),
    Request("GET", "vhosts/nope"),
    # Deleting
    Request("DELETE", "queues/V/quorum?if-unused=true"),
    Request("DELETE", "queues/V/quorum?if-empty=true"),
    Request("DELETE", "queues/V/stream?if-empty=true"),
    Request("DELETE", "queues/V/nope"),
    Request("DELETE", "exchanges/V/x?if-unused=true"),
    Request("DELETE", "exchanges/V/x"),
    Request("DELETE", "exchanges/V/amq.topic"),
    Request("POST", "queues/V/q/actions", {"action": "sync"}),
    Request("POST", "queues/V/q/actions", {"action": "nope"}),
    # Users, permissions, policies, parameters, limits
    Request("PUT", "users/V", {"password": "p"}),
    Request("PUT", "users/V", {"tags": "management"}),
    Request("PUT", "users/V", {"password": "p", "password_hash": "", "tags": ""}),
    Request("PUT", "users/V", {"password": "p", "tags": "management"}),
    Request("PUT", "users/V", {"password_hash": "", "tags": ["management"]}),
    Request("PUT", "users/V", {"password_hash": "aa", "tags": ""}),
    Request("POST", "users/bulk-delete", {"users": ["nope"]}),
    Request("GET", "users/V"),
    Request("PUT", "permissions/V/V", {"configure": ".*", "write": ".*", "read": ".*"}),
    Request("PUT", "permissions/V/V", {"configure": ".*"}),
    Request("PUT", "permissions/V/nope", {"configure": ".*", "write": ".*", "read": ".*"}),
    Request("GET", "permissions/V/V"),
    Request("DELETE", "users/V"),
    Request("DELETE", "users/V"),
    Request("PUT", "policies/V/p", {"pattern": "^p", "definition": {"max-length": 5}}),
    Request("PUT", "policies/V/p", {"pattern": "(", "definition": {"max-length": 5}}),
    Request("PUT", "policies/V/p", {"pattern": "p"}),
    Request("PUT", "policies/V/p", {"pattern": "p", "definition": {"nope": 5}}),
    Request("PUT", "policies/V/p", {"pattern": "p", "definition": {}}),
    Request("GET", "policies/V/p"),
    Request("GET", "policies/V/nope"),
    Request("DELETE", "policies/V/nope"),
    Request("PUT", "vhost-limits/V/max-queues", {"value": 100}),
    Request("PUT", "vhost-limits/V/nope", {"value": 100}),
    Request("PUT", "vhost-limits/V/max-queues", {"value": "x"}),
    Request("GET", "vhost-limits/V"),
    Request("GET", "vhosts/V"),
    # The node
    Request("GET", "whoami"),
    Request("GET", "version"),
    Request("GET", "auth"),
    Request("GET", "auth/hash_password/secret"),
    Request("GET", "extensions"),
    Request("GET", "health/checks/alarms"),
    Request("GET", "health/checks/local-alarms"),
    Request("GET", "health/checks/virtual-hosts"),
    Request("GET", "health/checks/ready-to-serve-clients"),
    Request("GET", "health/checks/below-node-connection-limit"),
    Request("GET", "health/checks/is-in-service"),
    Request("GET", "health/checks/metadata-store/initialized"),
    Request("GET", "health/checks/metadata-store/initialized/with-data"),
    Request("GET", "health/checks/quorum-queues-without-elected-leaders/all-vhosts"),
    Request("GET", "health/checks/quorum-queues-without-elected-leaders/all-vhosts/pattern/.*"),
    Request("GET", "health/checks/quorum-queues-without-elected-leaders/vhost/V/pattern/.*"),
    Request("GET", "health/checks/node-is-mirror-sync-critical"),
    Request("GET", "health/checks/node-is-quorum-critical"),
    Request("GET", "health/checks/certificate-expiration/1/bogus"),
    Request("GET", "health/checks/certificate-expiration/x/days"),
    Request("GET", "health/checks/port-listener/1"),
    Request("GET", "health/checks/port-listener/x"),
    Request("GET", "health/checks/protocol-listener/amqp"),
    Request("GET", "health/checks/protocol-listener/amqp,nope"),
    Request("GET", "health/checks/protocol-listener/nope"),
    Request("GET", "nope"),
    Request("PATCH", "queues/V/q"),
    # Definitions
    Request("GET", "definitions/V"),
    Request("GET", "definitions/nope"),
    Request("POST", "definitions/V", {"queues": [{"name": "d", "durable": True, "arguments": []}]}),
    Request("POST", "definitions/V", {"queues": [{"name": "q", "durable": False}]}),
    Request("POST", "definitions/V", {"policies": [{"name": "p", "pattern": "p", "definition": {"nope": 1}}]}),
    Request(
        "POST", "definitions/V", {"bindings": [{"source": "x", "destination": "nope", "destination_type": "queue"}]}
    ),
    Request("POST", "definitions/V", "{"),
)


class Recorded(NamedTuple):
    """A request, and what was answered."""

    request: Request
    status: int
    answer: Any

    def as_json(self) -> dict[str, Any]:
        body = json.dumps(self.request.body)
        asked = f"{self.request.method} {self.request.path}" + (f" {body[:150]}" if body != "null" else "")
        return {"request": asked, "status": self.status, "answer": self.answer}


#: Fields that RabbitMQ adds only some seconds later, with its statistics, and those whose names are of nodes.
_STATISTICS = re.compile("message_stats|cluster_state|messages(_.*)?|.*_details")


def shape(value: Any) -> Any:
    """Return a JSON value with types instead of values; for a list, one item with the fields of all of them."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in sorted(value.items()) if not _STATISTICS.fullmatch(name)}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        merged = {name: each[name] for each in shapes if isinstance(each, dict) for name in sorted(each)}
        return [merged] if merged else shapes[:1]
    return "null" if value is None else {bool: "boolean", int: "number", float: "number", str: "string"}[type(value)]


def asked(management: str, requests: tuple[Request, ...] = REQUESTS) -> Iterator[Recorded]:
    """Send each request to a broker, and yield it with the answer, in which nothing depends on the run."""
    vhost = f"record-{uuid.uuid4().hex[:8]}"
    _send(management, "PUT", f"vhosts/{vhost}", {})
    try:
        for request in requests:
            path = "/".join(vhost if word == "V" else word for word in request.path.split("/"))
            path = path.replace("/V?", f"/{vhost}?")
            status, body = _send(management, request.method, path, request.body)
            if status < 400:
                answer = shape(body)
            else:
                answer = json.loads(json.dumps(body).replace(vhost, "V"))
                if isinstance(body, dict):  # which listeners there are
                    answer |= {name: shape(answer[name]) for name in ("ports", "protocols") if name in answer}
            yield Recorded(request, status, answer)
    finally:
        _send(management, "DELETE", f"vhosts/{vhost}")
        _send(management, "DELETE", f"users/{vhost}")


def _send(management: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
    credentials = "Basic " + base64.b64encode(b"guest:guest").decode()
    headers = {"Authorization": credentials, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{management}/api/{path}", data, headers, method=method), timeout=30
        ) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text) if text else None
    except ValueError:
        return status, text.decode(errors="replace")[:200]


if __name__ == "__main__":
    for recorded in asked(sys.argv[1]):
        print(json.dumps(recorded.as_json()))
