"""A queue name that a message claims, but does not prove, cannot be used before it has been checked."""

import pytest

from mqtool.claims import Claimed

OPTIONS = ("--config-file=", "--strict", "--follow-imports=silent")
USE = """
from mqtool.claims import Claimed
from mqtool.message import Message

def publish(key: Claimed[str]) -> Message:
    return Message(b"", {}, "")
"""


def test_a_claimed_value_is_returned_only_if_the_check_accepts_it() -> None:
    """`Claimed.proven()` returns a claimed queue name if the given check accepts the name, and None otherwise."""
    claim = Claimed("payroll")
    assert claim.proven(lambda queue: queue == "payroll") == "payroll"
    assert claim.proven(lambda _: False) is None
    assert claim.shown() == "payroll"


def test_mypy_refuses_a_claim_as_a_routing_key() -> None:
    """mypy reports a type error if a claimed queue name is used as a routing key before it has been proven."""
    api = pytest.importorskip("mypy.api")
    refused, _, code = api.run([*OPTIONS, "-c", USE.format("key")])
    assert code == 1
    assert 'incompatible type "Claimed[str]"; expected "str | None"' in refused
    assert api.run([*OPTIONS, "-c", USE.format("key.proven(lambda name: name == 'jobs')")])[2] == 0
