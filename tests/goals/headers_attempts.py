"""Attempts at the goals of headers."""

from tests.goals.attempts import Attempts, Plain, PlainConsumer, Wrong
from tests.goals.publish_subscribe_attempts import bound

_ALL = "start mqtool receive-log headers --match all format=pdf type=report;"
_ANY = "start mqtool receive-log headers --match any format=pdf type=report;"
_BOTH = "mqtool emit-log headers -H format=pdf -H type=report both;"
_ONE = "mqtool emit-log headers -H format=pdf -H type=log one;"


def _receiver(plain: Plain, match: str) -> PlainConsumer:
    headers = {"x-match": match, "format": "pdf", "type": "report"}
    return plain.consume(bound(plain, "headers_logs", "headers", "", **headers), auto_ack=True)


def _two(plain: Plain) -> None:
    every, some = _receiver(plain, "all"), _receiver(plain, "any")
    plain.send("", "both", "headers_logs", headers={"format": "pdf", "type": "report"})
    plain.send("", "one", "headers_logs", headers={"format": "pdf"})
    every.wait(1)
    some.wait(2)


ATTEMPTS = {
    "all-or-any": Attempts(
        _ALL + _ANY + _BOTH + _ONE,
        _two,
        (
            Wrong("Both receivers are bound with x-match 'all'", _ALL + _ALL + _BOTH + _ONE),
            Wrong("only one of the headers", _ALL + _ANY + _BOTH),
            Wrong("bound with one header", "start mqtool receive-log headers format=pdf;" + _BOTH),
            Wrong("reached no queue", _ALL + _ONE),
            Wrong("not to 'headers_logs'", "mqtool emit-log fanout hi"),
        ),
    )
}
