"""A queue name from a message's headers, which a publisher can forge, cannot be used before it has been checked."""

import pytest

from mqtool.claims import Claimed

OPTIONS = ("--config-file=", "--strict", "--follow-imports=silent")
USE = """
from mqtool.claims import Claimed
from mqtool.message import Message

def publish(key: Claimed[str]) -> Message:
    return Message(b"", {}, "")
"""


def test_a_queue_name_from_a_header_is_returned_only_if_the_check_accepts_it() -> None:
    """A publisher can forge a queue name in a message's header. `Claimed.proven(check)` returns such a name if check()
    accepts it; otherwise, it returns None.
    """
    claim = Claimed("payroll")
    assert claim.proven(lambda queue: queue == "payroll") == "payroll"
    assert claim.proven(lambda _: False) is None
    assert claim.shown() == "payroll"


def test_mypy_refuses_an_unchecked_queue_name_from_a_header_as_a_routing_key() -> None:
    """A publisher can forge a queue name in a message's header. mypy reports a type error if mqtool's code uses such a
    name (`Claimed`) as a routing key without checking it first.
    """
    api = pytest.importorskip("mypy.api")
    refused, _, code = api.run([*OPTIONS, "-c", USE.format("key")])
    assert code == 1
    assert 'incompatible type "Claimed[str]"; expected "str | None"' in refused
    assert api.run([*OPTIONS, "-c", USE.format("key.proven(lambda name: name == 'jobs')")])[2] == 0
