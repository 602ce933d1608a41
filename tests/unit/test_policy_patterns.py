"""The patterns of policies and permissions, as mqtool matches them."""

import time

import pytest
import re2

from mqtool.errors import UsageError
from mqtool.management.policy_patterns import check_pattern, pattern_matches


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (r"^(?!amq\.).*", "orders", "amq.topic"),
        (r"^((?!amq).)*$", "orders", "orders.amq"),
        (r"^(?!(amq\.|mqtt|stomp|celery).*).+$", "orders", "celeryev"),
        (r"^(?!.*[.]dlq$)[a-z.]+$", "orders", "orders.dlq"),
        (r"(?<=eu\.)orders", "eu.orders", "us.orders"),
        (r"^(\w)\w*\1$", "xyx", "xyz"),
    ],
)
def test_common_patterns_with_lookaround_or_backreferences_are_matched(pattern: str, matching: str, other: str) -> None:
    """RE2, which mqtool uses for policy patterns, does not support lookaround and backreferences. mqtool still
    matches common patterns that contain them, with the same result as RabbitMQ.
    """
    assert pattern_matches(pattern, matching) is True
    assert pattern_matches(pattern, other) is False


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)(a+)+$", "(?=a)(a|a)*$", "(?!x)((a*)*)*$", "(?=a)(a|a){9,}$", r"(a*)*\1b",
        f"^(?=a){'a?' * 40}{'a' * 40}$",
        f"^(?=a){'(a|a)' * 40}$", f"^(?=a){'a*' * 9}b", "(?=a)[(]*(a+)+$", r"(?=a)\((a+)+$|(a+)+$", "(?=" * 5000,
        r"(?=a)[\][](a+)+$|x]", "(?=a)(?#[)(a+)+$(?#])", "(?x)(?=a)#[\n(a+)+$#]",
    ],
)  # fmt: skip
def test_a_pattern_that_could_take_very_long_to_match_is_not_evaluated(pattern: str) -> None:
    """Python's `re` module could take very long to match a name against some policy patterns. mqtool does not
    evaluate these patterns: pattern_matches() returns None, which means that the result is unknown.
    """
    before = time.thread_time()
    assert pattern_matches(pattern, "a" * 60 + "!") is None
    assert time.thread_time() - before < 5


@pytest.mark.parametrize("pattern", ["(*UTF8)a", "^*a", r"\Q[(\E", r"[a-\d]", "(?|a|b)", "^jobs", "", "[[:alpha:]]"])
def test_a_pattern_that_rabbitmq_might_accept_is_not_refused(pattern: str) -> None:
    """If Python's `re` module cannot compile a policy pattern, but PCRE, which RabbitMQ uses, might be able to
    compile it, mqtool does not refuse the pattern.
    """
    check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["[", "*", "*.jobs", "+", "(", "a(b", ")", "a)", "[a", "[]"])
def test_a_pattern_that_rabbitmq_cannot_compile_is_refused(pattern: str) -> None:
    """A policy pattern with a common mistake, such as a missing bracket, raises UsageError, and the error contains
    the pattern.
    """
    with pytest.raises(UsageError, match="is not a valid regular expression: ") as refused:
        check_pattern(pattern)
    assert str(refused.value).startswith(repr(pattern))


def test_each_of_many_patterns_is_compiled_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a broker has hundreds of policies, mqtool compiles each of their patterns only once. Compiling them again for
    each queue would take several times as long.
    """
    compiled: list[bytes] = []
    compile_one = re2.compile

    def compile_and_list(pattern: bytes, options: re2.Options) -> object:
        compiled.append(pattern)
        return compile_one(pattern, options)

    monkeypatch.setattr(re2, "compile", compile_and_list)
    patterns = [rf"^tenant{number}\." for number in range(500)]
    for queue in ("tenant1.jobs", "tenant2.jobs"):
        assert sum(pattern_matches(each, queue) is True for each in patterns) == 1
    assert compiled == [each.encode() for each in patterns]
