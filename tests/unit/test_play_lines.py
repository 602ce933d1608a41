"""Tutorials that are printed line by line, as `tutorial run --lines` and `make demo` print them."""

import itertools
from unittest.mock import MagicMock

import pytest

from mqtool.cli.display.play_lines import PlayLines, TypingPace
from mqtool.plays import PLAYS, incident


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the terminals so far, without the spaces at their ends."""
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_message_is_shown_as_sent_before_it_is_shown_as_received(capsys: pytest.CaptureFixture[str]) -> None:
    """While a sender's command runs in a tutorial, the output of other terminals is delayed until the command has
    ended, so that a message is never shown as received before it is shown as sent.
    """
    lines = PlayLines(TypingPace(auto=True, watched=False))
    lines.opened(["sender", "receiver"])
    lines.put_first("sender")
    lines.typed("sender", "mqtool send")
    lines.printed("receiver", " [x] Received Hello World!")
    lines.printed("sender", " [x] Sent 'Hello World!'")
    lines.printed("receiver", " [x] Received too")
    assert printed(capsys) == ["sender   │ $ mqtool send", "sender   │  [x] Sent 'Hello World!'"]
    lines.put_first(None)
    assert printed(capsys) == ["receiver │  [x] Received Hello World!", "receiver │  [x] Received too"]


def test_the_lines_of_an_rpc_client_and_server_are_shown_in_the_order_of_printing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A running tutorial shows the lines of an RPC client and its server in the order in which they were printed."""
    lines = PlayLines(TypingPace(auto=True, watched=False))
    lines.opened(["client", "server"])
    lines.put_first(None)
    lines.typed("client", "mqtool rpc-client 30")
    lines.printed("server", " [.] fib(30)")
    lines.printed("client", " [.] Got 832040")
    assert printed(capsys) == ["client │ $ mqtool rpc-client 30", "server │  [.] fib(30)", "client │  [.] Got 832040"]


@pytest.mark.parametrize("name", ["topics", "incident"])
def test_a_scene_is_explained_before_its_terminals_replace_the_others(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """When a tutorial changes to a scene with other terminals, it first explains this scene, while the last output of
    the old terminals is still visible.
    """
    monkeypatch.setattr(incident, "embedded_broker", MagicMock())
    incident.embedded_broker.return_value.__enter__.return_value = ("amqp://laptop", "http://laptop")
    stage, done = MagicMock(), list[str]()

    def opened(*names: str, **_: object) -> list[MagicMock]:
        done.append("opened")
        terminals = [MagicMock() for _ in names]
        for terminal in terminals:
            terminal.run.side_effect = terminal.start.side_effect = typed
        return terminals

    def typed(*_: object, **__: object) -> list[str]:
        done.append("typed")
        return []

    stage.terminals.side_effect = opened
    stage.say.side_effect = lambda *_: done.append("explained")
    PLAYS[name].play(stage)
    assert done.count("opened") > 1
    assert ("typed", "opened") not in itertools.pairwise(done)
