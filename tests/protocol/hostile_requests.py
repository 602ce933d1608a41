"""Requests to the management API that no well-behaved client sends: python -m tests.protocol.hostile_requests.

Every route with a body gets bodies that are almost valid: with fields of the wrong type, far too long, nested or
missing. A response is a failure if its status is 500, if it is not JSON, or if it has a body after HEAD.
"""

import argparse
import base64
import http.client
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from mqtool.broker.embedded.http.route_table import paths

LOGIN = {"authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
#: A valid body for each kind of path, which is then made invalid.
BODIES: dict[str, dict[str, Any]] = {
    "publish": {"properties": {"headers": {"a": 1}}, "routing_key": "k", "payload": "x", "payload_encoding": "string"},
    "get": {"ackmode": "ack_requeue_true", "count": 1, "encoding": "auto", "truncate": 5},
    "queues": {"durable": True, "auto_delete": False, "arguments": {"x-max-length": 5}},
    "exchanges": {"type": "direct", "durable": True, "internal": False, "arguments": {"alternate-exchange": "x"}},
    "bindings": {"routing_key": "k", "arguments": {"x-match": "all"}},
    "users": {"password": "secret", "tags": "management", "limits": {"max-channels": 5}},
    "permissions": {"configure": ".*", "write": ".*", "read": ".*"},
    "topic-permissions": {"exchange": "amq.topic", "write": ".*", "read": ".*"},
    "vhosts": {"description": "d", "tracing": False, "tags": "a,b"},
    "policies": {"pattern": "^q", "definition": {"max-length": 5}, "priority": 1, "apply-to": "queues"},
    "operator-policies": {"pattern": "^q", "definition": {"expires": 500000}, "priority": 1, "apply-to": "queues"},
    "parameters": {"value": {"max-queues": 5}},
    "global-parameters": {"value": {"a": [1, None]}},
    "vhost-limits": {"value": 5},
    "user-limits": {"value": 5},
    "cluster-name": {"name": "c"},
    "definitions": {
        "users": [{"name": "u", "password_hash": "", "tags": ""}],
        "vhosts": [{"name": "v", "metadata": {"description": "d"}}],
        "permissions": [{"user": "u", "vhost": "v", "configure": "", "write": "", "read": ""}],
        "policies": [{"vhost": "v", "name": "p", "pattern": "", "definition": {"expires": 1}}],
        "parameters": [{"vhost": "v", "component": "vhost-limits", "name": "limits", "value": {"max-queues": 1}}],
        "queues": [{"vhost": "v", "name": "q", "durable": True, "arguments": {}}],
        "exchanges": [{"vhost": "v", "name": "x", "type": "direct", "arguments": {}}],
        "bindings": [{"vhost": "v", "source": "x", "destination": "q", "destination_type": "queue", "arguments": {}}],
    },
    "mqtool": {"fault": "delay_confirms", "seconds": 0, "vhost": "/"},
}
#: Values of wrong types and sizes, as JSON.
VALUES = [
    *("null", "true", "false", "0", "-1", "1.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 19, "9" * 5000, "1e308"),
    *('""', '"x"', '"\\ud800"', '"\\udc80"', '"\\u0000"', '"' + "x" * 300 + '"', '"' + "é" * 70_000 + '"', '"[(*"'),
    *("[]", "{}", "[[]]", "[null]", '["\\udc80"]', '{"":{}}', "[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70),
    *("[" * 20_000 + "]" * 20_000, '{"value":{"value":[{}]}}', '[{"name":null}]', '[{"name":{"a":1}}]', "[1,true,{}]"),
]
NAMES = ["q", "amq.topic", "", " ", "é", "\ud800", "x" * 300, "a/b", "%00", "..", "\n", "amq.default", "guest", "1e9"]
QUERIES = [
    *("page=1&page_size=0", "page=x", "columns=name.a,name", "sort=arguments", "columns=.", "count=x"),
    *("page=1&name=(&use_regex=true", "count=0&timeout=nan", "sort=name&sort_reverse=true", "page=" + "9" * 5000),
]
#: Objects that other requests need. A request that would replace or delete one of them gets another name instead.
SPARED = ("vhosts/%2F", "users/guest", "permissions/%2F/guest")


class Requests:
    """Generates hostile requests from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.routes = [(path, method) for path, methods in paths().items() for method in methods]

    def next(self) -> tuple[str, str, bytes | None]:
        """Return a method, a path and a body."""
        path, method = self.random.choice(self.routes)
        words = [self._name(word) if word.isupper() else word for word in path.split("/")]
        target = "/".join(quote(word, safe="", errors="surrogatepass") for word in words)
        if target in SPARED and method in ("PUT", "DELETE"):
            target += "-not"
        if method in ("GET", "HEAD") and self.random.random() < 0.4:
            target += "?" + self.random.choice(QUERIES)
        body = None if method in ("GET", "HEAD", "DELETE") and self.random.random() < 0.9 else self._body(path)
        return method, target, body

    def _name(self, word: str) -> str:
        if word == "VHOST" and self.random.random() < 0.7:
            return "/"
        return self.random.choice(("q", "e")) if word == "TYPE" else self.random.choice(NAMES)

    def _body(self, path: str) -> bytes:
        words = path.split("/")
        kind = next((word for word in reversed(words) if word in BODIES), "definitions")
        text = json.dumps(BODIES[kind])
        for _ in range(self.random.choice((0, 1, 1, 1, 2))):
            text = self._spoilt(text)
        return text.encode()

    def _spoilt(self, text: str) -> str:
        """Replace one value, at any depth, or remove its field."""
        try:
            value = json.loads(text)
            places = list(_places(value))  # Python 3.14 can load JSON that is too deep for this recursion
        except (ValueError, RecursionError):
            return text[: self.random.randint(0, len(text))]
        if not places or self.random.random() < 0.1:
            return self.random.choice(VALUES)
        within, key = self.random.choice(places)
        if self.random.random() < 0.2:
            del within[key]
            return json.dumps(value)
        within[key] = "PLACE"
        return json.dumps(value).replace('"PLACE"', self.random.choice(VALUES), 1)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


class Sender:
    """Sends requests on one connection, and collects what is wrong with the responses."""

    def __init__(self, url: str, seed: int) -> None:
        self.host = urlsplit(url).netloc
        self.requests = Requests(seed)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._connection = http.client.HTTPConnection(self.host, timeout=20)

    def send(self) -> None:
        """Send one request."""
        method, path, body = self.requests.next()
        what = f"{method} {path[:200]} {(body or b'')[:300]!r}"
        try:
            self._connection.request(method, f"/api/{path}", body, LOGIN)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{what}: {error!r}")
            self._connection = http.client.HTTPConnection(self.host, timeout=20)
            return
        self.statuses[answer.status] += 1
        try:
            if content:
                json.loads(content, parse_constant=_refuse)
        except ValueError as error:
            self.failures.append(f"{what}: not JSON: {error} {content[:200]!r}")
        if answer.status == 500:
            self.failures.append(f"{what}: 500")


def _refuse(name: str) -> None:
    raise ValueError(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mqtool.broker.embedded", "--port=0", "--management-port=0", "--recording"]
    with subprocess.Popen([*command, "--print-url"], stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        try:
            sender = Sender([broker.stdout.readline().strip() for _ in range(2)][1], arguments.seed)
            deadline = time.monotonic() + arguments.seconds
            while time.monotonic() < deadline and not sender.failures:
                sender.send()
        finally:
            broker.terminate()
    print(f"seed {arguments.seed}: {sender.statuses.total()} requests, by status {dict(sender.statuses)}")
    sys.exit("\n".join(sender.failures) or None)


if __name__ == "__main__":
    main()
