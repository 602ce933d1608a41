"""python -m demo.cluster: three nodes; one is killed while messages flow at full speed, and comes back later."""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo import OUTPUT, interruption
from demo.interruption import Interrupted
from mqtool.broker import choice, state
from mqtool.broker.choice import Kind, starter_of
from mqtool.cli.display import output
from mqtool.cli.display.pace import Pace
from mqtool.cli.display.play_lines import Lines
from mqtool.errors import MqtoolError
from mqtool.stage.guard import Guard
from mqtool.stage.stage import Place, Stage, lines_of, undisturbed
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import LineCount, wait_until

_NAME = "demo-cluster"
_COUNT = 60_000
_GOT = OUTPUT / "cluster.txt"
#: Seconds for which publishers and workers may pause.
_PAUSE = 10.0
_STORY = (
    "A quorum queue has a copy on each of three nodes. One of them is killed, which leads the queue, and to which both "
    "the publisher and the receiver are connected: the others choose another leader, and mqtool the next URL."
)


def main() -> int:
    """Play it; return the exit code."""
    interruption.install()
    lines = Lines(Pace(auto=True, watched=False))
    guard = Guard()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="mqtool-demo-") as scratch,
            lines.watching("A cluster that loses a node", _STORY),
            Stage(lines, Place(Path(), Path(scratch), {}, False, guard)) as stage,
        ):
            nodes, publisher, receiver = stage.terminals("cluster", "publisher", "receiver")
            # Not Docker where there is another way: it might have to download an image first.
            kind = Kind.NODE if choice.CLUSTERS[Kind.NODE].is_available() else Kind.DOCKER
            try:
                nodes.run(f"mqtool broker up --cluster --name {_NAME} --kind {kind}")
                _play(stage, lines, nodes, publisher, receiver)
            finally:
                with undisturbed():
                    nodes.ask_to_end()
                    nodes.end()
                    nodes.run(f"mqtool broker down --name {_NAME}")
    except Interrupted as interrupted:
        output.error("interrupted; everything it started has been stopped")
        return interrupted.exit_code
    except MqtoolError as failure:
        output.error(f"The demonstration has failed: {failure}", failure.hint)
        return 1
    lines.right("All is right.")
    return 0


def _play(stage: Stage, lines: Lines, nodes: Terminal, publisher: Terminal, receiver: Terminal) -> None:
    cluster = state.load(_NAME)
    assert cluster is not None
    lines.note('In each terminal: eval "$(mqtool broker env --name demo-cluster)", which names all three nodes.')
    for terminal in (publisher, receiver):
        terminal.set_variable("MQTOOL_URL", cluster.url)
    OUTPUT.mkdir(exist_ok=True)
    receiver.start(f"mqtool receive -q demo.cluster --raw > {_GOT}")
    got = _Watch(_GOT)
    with ThreadPoolExecutor(2) as background:
        sending = background.submit(publisher.run, f"seq {_COUNT} | mqtool send -l -q demo.cluster --persistent")
        got.wait_for(_COUNT // 6)
        lines.note("kill -9 of the first node …")
        starter_of(cluster).kill(cluster, 0)
        got.wait_for(_COUNT // 2)
        starting = background.submit(nodes.run, f"mqtool broker up --name {_NAME}")
        got.wait_for(_COUNT)
        sending.result()
        starting.result()
    wait_until(lambda: len(set(lines_of(_GOT))) >= _COUNT, lambda: f"{_COUNT:,} different lines in {_GOT}")
    receiver.interrupt()
    received = lines_of(_GOT)
    stage.expect(f"all {_COUNT:,} messages are confirmed", publisher.count(f"{_COUNT:,} confirmed, 0 nacked"), 1)
    stage.expect("none of them is lost", {*received}, {str(number) for number in range(1, _COUNT + 1)})
    stage.expect(
        f"the receiver paused for {got.longest_pause:.1f} s, and no longer than {_PAUSE:.0f}",
        got.longest_pause < _PAUSE,
        True,
    )
    lines.note(f"{len(received) - _COUNT:,} came twice: what was on its way when the node died.")


class _Watch:
    """Looks at a growing file, and remembers for how long it has not grown."""

    def __init__(self, path: Path) -> None:
        self._count = LineCount(path)
        self._lines = 0
        self._grown_at = time.monotonic()
        self.longest_pause = 0.0

    def wait_for(self, lines: int) -> None:
        """Wait until it has so many lines."""
        wait_until(lambda: self._look() >= lines, lambda: f"{lines:,} lines; there are {self._lines:,}", patience=90)

    def _look(self) -> int:
        now, lines = time.monotonic(), self._count()
        if lines > self._lines:
            if self._lines:  # before the first, nobody has sent anything
                self.longest_pause = max(self.longest_pause, now - self._grown_at)
            self._lines, self._grown_at = lines, now
        return lines


if __name__ == "__main__":
    os.environ.pop("MQTOOL_URL", None)
    sys.exit(main())
