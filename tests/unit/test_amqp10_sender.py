"""The AMQP 1.0 sender and the broker's outcomes, with plain callables in place of a broker."""

import threading
from typing import Any, cast

import pytest

from mqtool.amqp10.link_sender import Sender, SendingLink
from mqtool.codecs.amqp10_frames import Accepted, Rejected
from mqtool.errors import Unavailable
from mqtool.message import Message, Receipt


class LostSession:
    """A session that is lost after the broker has accepted the second message and rejected the third one."""

    failure = hopeless = None
    stopping = False

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._link = SendingLink("link", "/queues/q")

    def sending_link(self, _: str | None) -> SendingLink:
        return self._link

    def pump(self) -> None:
        for outgoing, state in zip([*self._link.waiting][1:], (Accepted(), Rejected(None)), strict=False):
            outgoing.decide(state)

    def check(self) -> None:
        raise Unavailable("gone")


def test_send_yields_the_brokers_responses_before_the_error_of_a_lost_amqp_1_0_session() -> None:
    """If an AMQP 1.0 session is lost, send() first yields each message that the broker has accepted (`confirmed`) or
    rejected (`nacked`), and then raises Unavailable. A message without a response from the broker stays in the sender's
    list `unconfirmed`.
    """
    sender, received = Sender(cast(Any, LostSession()), "/queues/q", persistent=False), list[Receipt]()
    with pytest.raises(Unavailable, match="gone"):
        received.extend(sender.send([Message(b"1"), Message(b"2"), Message(b"3")]))
    assert [(each.message.body, each.confirmation) for each in received] == [(b"2", "confirmed"), (b"3", "nacked")]
    assert [message.body for message in sender.unconfirmed] == [b"1"]
