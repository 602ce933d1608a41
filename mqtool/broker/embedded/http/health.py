"""Health checks: 200 if all is well, 503 with what is not."""

from http import HTTPStatus

from mqtool.broker.embedded.http.directory import bad_request, not_found
from mqtool.broker.embedded.http.server import Answer
from mqtool.broker.embedded.http.views import Json
from mqtool.broker.embedded.model.broker import NODE, Broker

_OK = {"status": "ok"}
_ALONE = {"status": "ok", "reason": "single node cluster"}
# RabbitMQ knows AMQP by several names, with and without TLS.
_ALSO_CALLED = {"amqp091": "amqp", "amqp10": "amqp", "amqp0.9.1": "amqp", "amqp1.0": "amqp", "amqps": "amqp/ssl"}


def check(broker: Broker, path: list[str]) -> Answer:
    """Answer a request below `/api/health/checks`.

    Raises:
        HttpError: 400, the port is not a number; 404, there is no such check.
    """
    match path:
        case ["alarms" | "local-alarms"]:
            shortages = [reason.removeprefix("low on ") for reason in sorted(set(broker.alarms.values()))]
            wrong = {
                "reason": "There are alarms in effect in the cluster",
                "alarms": [{"node": NODE, "resource": each} for each in shortages],
            }
            return _answer(_OK, wrong if broker.alarms else None)
        case ["port-listener", port]:
            if not port.isdecimal():
                raise bad_request("Invalid port")
            ports = [number for _, number in broker.listeners.values()]
            absent = None if int(port) in ports else {"missing": int(port), "ports": ports}
            return _answer({**_OK, "port": int(port)}, absent)
        case ["protocol-listener", name]:
            protocol = _ALSO_CALLED.get(name.lower(), name.lower())
            absent = None if protocol in broker.listeners else {"missing": name, "protocols": list(broker.listeners)}
            return _answer({**_OK, "protocol": protocol}, absent)
        case ["virtual-hosts"] | ["certificate-expiration", _, _]:
            return _answer(_OK, None)
        case ["node-is-quorum-critical" | "node-is-mirror-sync-critical"]:
            return _answer(_ALONE, None)
    raise not_found()


def _answer(well: Json, wrong: Json | None) -> Answer:
    if wrong is None:
        return Answer(HTTPStatus.OK, well)
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failed", "reason": "No active listener", **wrong})
