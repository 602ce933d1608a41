"""The embedded broker answers as RabbitMQ did when the conversations in this directory were recorded."""

import difflib

import pytest

from tests.brokers import TestBroker, skip_or_fail, weekly
from tests.conversations.conversation import SUBJECTS, Heard, conversations, held, recorded
from tests.conversations.places import heard_live, memory

_VERSIONS = ("3.10", "4.0", "4.3")


def difference(before: Heard, after: Heard) -> str:
    """Return a step with the lines that peers heard before, and those that they hear now."""
    lines = list(difflib.unified_diff(before.heard, after.heard, lineterm="", n=9))[3:]
    return "\n".join((f"\n== {before.conversation}", before.said, *(lines or ["the same: there is no difference now"])))


@pytest.mark.parametrize("version", [*_VERSIONS, "4.2"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_peers_hear_what_they_heard_from_the_recorded_rabbitmq(subject: str, version: str) -> None:
    """In each conversation about the subject, each peer hears from the embedded broker (+) what it heard from RabbitMQ
    (-), except where the conversation says why not. A difference that is gone must not be listed any longer. RabbitMQ
    4.2 could not be recorded: it must say what 4.0 or 4.3 says.
    """
    compared = ("4.0", "4.3") if version == "4.2" else (version,)
    recordings = [{(each.conversation, each.step): each for each in recorded(subject, other)} for other in compared]
    wrong = []
    for conversation in conversations(subject, version):
        with memory(version) as place:
            ours = list(held(conversation, place))
        for step, after in zip(conversation.steps, ours, strict=True):
            real = [each[after.conversation, after.step] for each in recordings]
            assert real[0].said == after.said, "the conversation was changed: make record"
            is_alone, lines = len(real) == 1, [line for each in real for line in each.heard]
            is_same = after == real[0] if is_alone else {*after.heard} <= {*lines}
            is_known = any(other in step.differs for other in compared)
            if (is_known and is_alone) if is_same else not is_known:
                wrong.append(difference(real[-1], after))
    assert not wrong, "\n".join(wrong)


@weekly
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: f"rabbitmq-{subject}")
def test_peers_hear_from_rabbitmq_what_was_recorded(rabbitmq: TestBroker | None, subject: str) -> None:
    """RabbitMQ (+) still says what was recorded (-), if its version is one of those that were recorded."""
    if rabbitmq is None:
        skip_or_fail("there is no RabbitMQ to talk to")
        return
    version = str(rabbitmq.api("GET", "overview")["rabbitmq_version"]).rpartition(".")[0]  # type: ignore[index]
    if version not in _VERSIONS:
        pytest.skip(f"no conversations were recorded on RabbitMQ {version}")
    real = heard_live(rabbitmq, subject, version)
    wrong = [difference(*each) for each in zip(recorded(subject, version), real, strict=True) if each[0] != each[1]]
    assert not wrong, "\n".join(wrong)
