"""`/api/mqtool/…`: what tests in any language ask of the broker, and do to it. RabbitMQ has none of this."""

import base64
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mqtool.broker.embedded.http import views
from mqtool.broker.embedded.http.directory import bad_request, not_found
from mqtool.broker.embedded.http.server import Answer, HttpError, Request
from mqtool.broker.embedded.testing.fault import fault_of
from mqtool.broker.embedded.testing.recording import Recorded
from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

_SETTLED = ("acked", "rejected", "requeued")
#: How long to wait for messages, in seconds; as in Python.
_TIMEOUT, _MOST_PATIENCE = 2.0, 60.0


class BenchRequests:
    """Answers them.

    Args:
        bench: returns where the broker is tested.
    """

    def __init__(self, bench: Callable[[], BrokerUnderTest]) -> None:
        self._bench = bench

    def answer(self, request: Request, path: list[str]) -> Answer:
        """Answer a request for a path below `/api/mqtool`.

        Raises:
            HttpError: 400 or 404; or 409, nothing is being recorded.
        """
        bench = self._bench()
        match request.method, path:
            case "GET", ["faults"]:
                return Answer(HTTPStatus.OK, bench.faults())
            case "POST", ["faults"]:
                return self._begin(bench, request.json())
            case "DELETE", ["faults"]:
                bench.clear()
            case "DELETE", ["faults", number] if number.isdecimal():
                if not bench.undo(int(number)):
                    raise not_found()
            case "POST", ["reset"]:
                bench.reset(request.json().get("vhost"))
            case "GET", _:
                found = [_shown(each) for each in self._asked(bench, path, request.query)]
                count, timeout = _wanted(request.query)
                return Answer(HTTPStatus.OK, found, patience=timeout if len(found) < count else 0)
            case _:
                raise not_found()
        return Answer(HTTPStatus.NO_CONTENT)

    @staticmethod
    def _begin(bench: BrokerUnderTest, body: dict[str, Any]) -> Answer:
        name = body.pop("fault", None)
        if not isinstance(name, str):
            raise bad_request('the body must have a "fault", such as {"fault": "cut_connections"}')
        try:
            begun = bench.begin(fault_of(name, body))
        except ValueError as error:
            raise bad_request(str(error)) from error
        return Answer(HTTPStatus.CREATED, {"id": begun.number or None, "met": begun.met})

    @staticmethod
    def _asked(bench: BrokerUnderTest, path: list[str], query: dict[str, str]) -> list[Recorded]:
        try:
            match path:
                case ["published" | "unrouted" as what, vhost]:
                    names = {each: query[each] for each in ("exchange", "routing_key", "queue") if each in query}
                    return bench.recording.find(what, vhost, **names)
                case ["queues", vhost, queue, "messages"]:
                    return bench.ready(vhost, queue)
                case ["queues", vhost, queue, what] if what in _SETTLED:
                    return bench.recording.find(what, vhost, queue=queue)
        except LookupError as error:
            raise HttpError(HTTPStatus.CONFLICT, "not_recording", "start the broker with --recording") from error
        raise not_found()


def _wanted(query: dict[str, str]) -> tuple[int, float]:
    """How many messages to wait for, and how long at most, in seconds."""
    try:
        return int(query.get("count", 0)), min(float(query.get("timeout", _TIMEOUT)), _MOST_PATIENCE)
    except ValueError as error:
        raise bad_request("count and timeout must be numbers") from error


def _shown(message: Recorded) -> views.Json:
    view = {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "queues": message.queues,
        "redelivered": message.redelivered,
        "headers": views.plain(message.headers),
        "properties": views.plain(message.properties),
    }
    try:
        return {**view, "body": message.body.decode()}
    except UnicodeDecodeError:
        return {**view, "body_base64": base64.b64encode(message.body).decode()}
