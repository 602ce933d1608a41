"""The embedded broker's policies: which pattern matches a name, which policies apply to a queue, and their limits."""

from collections.abc import Callable
from typing import Any

import pytest
import re2

from mqtool.broker.embedded.model import applied_policies
from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.applied_policies import (
    NOTHING,
    OPERATOR,
    USER,
    Applied,
    Policies,
    Policy,
    check_pattern,
    finder,
    found,
)
from mqtool.broker.embedded.model.footprint import of_value
from mqtool.broker.embedded.model.ledger import Ledger, definition_key
from mqtool.codecs.field_tables import Table
from tests.unit.embedded.test_virtual_host import Storing

#: The most memory that the policies of a virtual host take.
MOST = 2_000_000


class Changes:
    """Policies, and how often they were changed."""

    def __init__(self, ledger: Ledger) -> None:
        self.count = 0
        self.policies = Policies("v", ledger, self.changed)

    def changed(self) -> None:
        self.count += 1


@pytest.fixture
def ledger() -> Storing:
    return Storing()


@pytest.fixture
def changes(ledger: Storing) -> Changes:
    return Changes(ledger)


@pytest.fixture
def policies(changes: Changes) -> Policies:
    return changes.policies


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (".*", "", True),
        ("", "jobs", True),
        ("ob", "jobs", True),
        ("^ob", "jobs", False),
        ("^jobs$", "jobs.eu", False),
        ("(?i)JOBS", "jobs", True),
        ("^é$", "é", True),
        ("^a", "a\udcff", True),
        ("jobs", "a\udcff", False),
    ],
)
def test_a_pattern_matches_anywhere_in_a_name(pattern: str, text: str, *, matches: bool) -> None:
    """The pattern of a policy, or the name filter of a management API request, can match any part of a name unless it
    is anchored with `^` or `$`. The name need not be valid UTF-8.
    """
    check_pattern(pattern)
    assert found(pattern, text) is matches
    assert finder(pattern)(text) is matches


@pytest.mark.parametrize("check", [check_pattern, finder])
@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", "missing ): (a"),
        ("a**", "bad repetition operator: **"),
        ("(?=a)", "invalid perl operator: (?="),
        ("\udcff", "invalid UTF-8"),
        ("[[:\udcff:]]", "invalid character class range: [:\ufffd:]"),
        (r"\pL{300}", "pattern too large - compile failed"),
    ],
)
def test_an_invalid_pattern_is_refused_with_the_reason_from_re2(
    check: Callable[[str], object], pattern: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """If RE2 cannot compile the pattern of a policy or the name filter of a management API request, or cannot do so
    within its memory limit, the broker refuses the pattern, and the error contains RE2's reason. RE2 itself prints
    nothing to stderr.
    """
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        check(pattern)
    assert str(refused.value) == reason
    assert capfd.readouterr().err == ""


def test_the_limits_of_a_name_filter_are_lower_than_those_of_a_policys_pattern() -> None:
    """Unlike the pattern of a policy, the name filter of a management API request is compiled again for each request.
    Its limits are therefore lower: the broker refuses a name filter of more than 1,000 characters, or one that needs
    too much memory.
    """
    assert finder("a" * 1000)("a" * 1000)
    check_pattern("a" * 1001)
    with pytest.raises(ValueError, match=r"^longer than 1000 characters$"):
        finder("a" * 1001)
    check_pattern(r"\pL{10}")
    with pytest.raises(ValueError, match=r"^pattern too large"):
        finder(r"\pL{10}")


def test_the_most_recently_used_compiled_patterns_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker keeps the compiled patterns of policies and permissions up to a total size. Beyond that, it drops
    those that have not been used for the longest time, and compiles them again when they are needed.
    """
    compiled: list[str] = []
    compile_pattern = re2.compile

    def counted(pattern: bytes, options: Any) -> Any:
        compiled.append(pattern.decode()[0])
        return compile_pattern(pattern, options)

    size = Policy("p", "a{1000}", {}).size - of_value({})
    monkeypatch.setattr(re2, "compile", counted)
    monkeypatch.setattr(applied_policies, "_MOST_COMPILED", 3 * size)
    monkeypatch.setattr(applied_policies, "_compiled", applied_policies._Patterns())
    for used, again in (("abc", "abc"), ("abca", ""), ("d", "d"), ("ac", ""), ("b", "b"), ("acb", ""), ("d", "d"),
                        ("cb", ""), ("da", "a")):  # fmt: skip
        compiled.clear()
        for letter in used:
            assert found(f"{letter}{{1000}}", letter * 1000)
        assert compiled == [*again]


ONE: Table = {"max-length": 1}


@pytest.mark.parametrize(
    ("policy", "applies_to"),
    [
        (Policy("p", ".*", ONE), "classic quorum exchange"),
        (Policy("p", ".*", {"max-length-bytes": 1}), "classic quorum stream exchange"),
        (Policy("p", ".*", {"max-age": "1D"}), "stream exchange"),
        (Policy("p", ".*", {"max-age": "1D", **ONE}), "exchange"),
        (Policy("p", ".*", {"delivery-limit": 1}), "quorum exchange"),
        (Policy("p", "^other", ONE), ""),
        (Policy("p", "^jo", ONE, apply_to="queues"), "classic quorum"),
        (Policy("p", "^jo", {}, apply_to="queues"), "classic quorum stream"),
        (Policy("p", "^jo", {}, apply_to="classic_queues"), "classic"),
        (Policy("p", "^jo", {}, apply_to="quorum_queues"), "quorum"),
        (Policy("p", "^jo", {}, apply_to="streams"), "stream"),
        (Policy("p", "^jo", {}, apply_to="exchanges"), "exchange"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["classic", "quorum", "stream", "exchange"])
@pytest.mark.parametrize("of", [USER, OPERATOR])
def test_a_policy_applies_only_if_its_pattern_and_its_apply_to_match(
    policies: Policies, policy: Policy, applies_to: str, kind: str, of: str
) -> None:
    """A policy or operator policy can apply to a queue or an exchange only if its pattern matches the name and its
    apply-to includes that type of object. For a queue, the queue's type must also support all keys in the policy's
    definition.
    """
    policies.put(of, policy)
    applied = policies.applied_to("jobs", kind)
    user, operator = ("p", None) if of == USER else (None, "p")
    assert applied == (Applied(user, operator, policy.definition) if kind in applies_to.split() else NOTHING)


@pytest.mark.parametrize("of", [USER, OPERATOR])
def test_only_the_matching_policy_with_the_highest_priority_applies(policies: Policies, of: str) -> None:
    """Of the policies that match a queue, only the one with the highest priority applies. The others have no effect."""
    for name, priority in (("a", 1.0), ("z", 0), ("b", 2.5), ("c", 2)):
        policies.put(of, Policy(name, "^jo", {f"setting-{name}": 1}, priority))
    policies.put(of, Policy("d", "other", ONE, 9))
    assert policies.applied_to("jobs", "classic").definition == {"setting-b": 1}
    policies.delete(of, "b")
    assert policies.applied_to("jobs", "classic").definition == {"setting-c": 1}


@pytest.mark.parametrize(
    ("user", "operator", "merged"),
    [
        ({"max-length": 5, "overflow": "drop-head"}, {"max-length": 3}, {"max-length": 3, "overflow": "drop-head"}),
        ({"max-length": 3}, {"max-length": 5, "expires": 7}, {"max-length": 3, "expires": 7}),
        ({"overflow": "drop-head"}, {"overflow": "reject-publish"}, {"overflow": "reject-publish"}),
        ({"delivery-limit": 5}, {"delivery-limit": "x"}, {"delivery-limit": "x"}),
        ({"delivery-limit": "x"}, {"delivery-limit": 5}, {"delivery-limit": 5}),
    ],
)
def test_a_policy_and_an_operator_policy_are_merged(
    policies: Policies, user: Table, operator: Table, merged: Table
) -> None:
    """If a policy and an operator policy apply to a queue, the keys in both definitions have an effect. If a key is
    in both, the smaller number applies, or the operator policy's value if one of the two values is not a number.
    """
    policies.put(USER, Policy("u", "jobs", user))
    policies.put(OPERATOR, Policy("o", "jobs", operator))
    assert policies.applied_to("jobs", "quorum") == Applied("u", "o", merged)
    assert policies.by_kind[USER]["u"].definition == user
    assert policies.by_kind[OPERATOR]["o"].definition == operator


@pytest.mark.parametrize("of", [USER, OPERATOR])
def test_a_policy_is_stored_until_it_is_deleted(changes: Changes, ledger: Storing, of: str) -> None:
    """When a policy is set, the broker stores it on disk, and applies it. When the policy is deleted, the broker
    removes it from the disk. Policies that the broker reads from disk when it starts are not stored again.
    """
    policies = changes.policies
    policies.put(of, Policy("p", "^jo", ONE, 2, "queues"))
    assert ledger.definitions == {
        (of, definition_key(["v", "p"])): {
            "vhost": "v", "name": "p", "pattern": "^jo", "definition": ONE, "priority": 2, "apply_to": "queues",
        }
    }  # fmt: skip
    policies.restore(of, Policy("q", "^jo", ONE))
    assert (len(ledger.definitions), [*policies.by_kind[of]], changes.count) == (1, ["p", "q"], 2)
    policies.delete(of, "p")
    assert (ledger.definitions, [*policies.by_kind[of]], changes.count) == ({}, ["q"], 3)


def of_size(name: str, size: int, pattern: str = ".*") -> Policy:
    """Return a policy that takes this many bytes."""
    empty = Policy(name, pattern, {"x": ""})
    return empty._replace(definition={"x": "x" * (size - empty.size)})


def test_the_policies_of_a_virtual_host_take_a_limited_amount_of_memory(policies: Policies, ledger: Storing) -> None:
    """The policies of a virtual host, including their compiled patterns, can take up to 2 MB of memory. Beyond that,
    the broker refuses a further policy with error 406 until another policy is deleted, or replaced by a smaller one.
    """

    def refused(policy: Policy) -> bool:
        stored = {**ledger.definitions}
        try:
            policies.put(USER, policy)
        except ChannelException as error:
            refusals.append(error.text)
            return ledger.definitions == stored
        return False

    refusals: list[str] = []
    policies.restore(OPERATOR, of_size("o", 1000))
    assert not refused(of_size("a", MOST - 2000, "a{500}"))
    assert refused(of_size("b", 1001))
    assert not refused(of_size("b", 1000))
    assert not refused(of_size("b", 1000))
    assert not refused(of_size("b", 900))
    assert refused(of_size("c", 500))
    policies.delete(USER, "b")
    assert not refused(of_size("c", 1000))
    assert refused(of_size("d", 500))
    policies.restore(OPERATOR, of_size("o", 500))
    assert refused(of_size("d", 501))
    assert not refused(of_size("d", 500))
    assert {*refusals} == {"PRECONDITION_FAILED - too many policies in vhost 'v', or too large patterns"}
    assert Policy("p", "a{1000}", {}).size > Policy("p", ".*", {}).size + 1000
