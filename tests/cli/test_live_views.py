"""If the broker restarts while `top`, `list --watch` or `topology --live` runs, the command shows that it is
reconnecting, and then continues.
"""

import re
import uuid
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from mqtool.broker.choice import BrokerKind
from tests.brokers import Restartable, large, own_broker
from tests.cli.shell import Shell, wait_until

QUEUES = [f"jobs-{number}" for number in range(9)]
VIEWS = {
    "mqtool list queues --watch 1s": ["name", "messages"],
    "mqtool topology --live --interval 1s": [],
    "mqtool top --interval 1s": ["name", "ready", "unacked", "warning"],
}
#: What moves the cursor to the top: rich draws each frame as a whole.
TOP = "\x1b[H"


@pytest.fixture(params=[BrokerKind.EMBEDDED, BrokerKind.NODE])
def restartable(request: pytest.FixtureRequest) -> Iterator[Restartable]:
    own_broker(request.param)
    broker = Restartable(request.param, f"live-{uuid.uuid4().hex[:8]}")
    yield broker
    broker.stop()


class View:
    """A live view on a terminal of its own."""

    def __init__(self, shell: Shell, command: str) -> None:
        typed = f"stty rows 24 cols 80; {command}"
        self.running = shell.start("/usr/bin/script", "-qfec", typed, "/dev/null", stdin=PIPE)

    def frames(self) -> list[str]:
        """Return the complete frames; the last one may still be being drawn."""
        return self.running.stdout.split(TOP)[1:-1]

    def wait_for(self, pattern: str) -> None:
        """Wait for a new frame that contains the text."""
        before = len(self.frames())
        wait_until(
            lambda: any(re.search(pattern, each) for each in self.frames()[before:]),
            lambda: f"{pattern!r}: {self.running.stdout[-3000:]!r}",
        )

    def press(self, key: bytes) -> None:
        assert self.running.process.stdin is not None
        self.running.process.stdin.write(key)
        self.running.process.stdin.flush()


@pytest.mark.sampled(1)
@large
def test_live_views_continue_after_a_restart_of_the_broker(restartable: Restartable, lonely_shell: Shell) -> None:
    """While the broker is down, `top`, `list --watch` and `topology --live` show their last rows and how old these rows
    are. Once the broker is back, all three commands show current rows again.
    """
    shell = lonely_shell
    shell.environment |= {"MQTOOL_URL": restartable.url, "TERM": "xterm"}
    for queue in QUEUES:
        assert shell.run("mqtool", "queue", "declare", queue, "--queue-type", "classic").code == 0
    views = {View(shell, command): columns for command, columns in VIEWS.items()}
    for view in views:
        view.wait_for(QUEUES[-1])
    first = {view: len(view.frames()) for view in views}
    restartable.stop()
    for view in views:
        view.wait_for(r"reconnecting; this is \d+ s old: no broker answers")
    restartable.start()
    assert shell.run("mqtool", "queue", "declare", "later", "--queue-type", "classic", "--wait", "60s").code == 0
    for view, columns in views.items():
        view.wait_for("later")
        for frame in view.frames()[first[view] :]:
            assert [word for word in (*columns, *QUEUES) if word not in frame] == [], frame
        view.press(b"q")
        assert view.running.wait().code == 0
