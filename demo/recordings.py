"""python -m demo.recordings [NAME...]: make docs/pictures/*.html, recordings of `mqtool ui` and of the tutorials.

NAME is "messages", the recording of `mqtool ui`, or "tutorials"; by default, both recordings are made. `make docs`
makes those that are missing. Any browser plays a recording, without mqtool and without a network.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from mqtool import plays
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.cli.display.play_page import PlayPage
from mqtool.plays.performing import perform
from mqtool.stage.terminal import Guard
from mqtool.tutorials import pages
from mqtool.ui.page_server import single_file

DIRECTORY = Path("docs/pictures")
#: The names of the recordings.
SHOP_AT_WORK, TUTORIALS = "messages", "tutorials"

#: Commands that prepare a broker: orders are in two queues, one of which has no consumer, and some are dead letters.
SHOP = """
mqtool exchange declare orders topic
mqtool queue declare packing.dlq
mqtool queue declare packing --dead-letter-exchange ''
mqtool queue declare invoices
mqtool exchange bind orders packing 'order.*'
mqtool exchange bind orders invoices 'order.paid'
seq 40 | mqtool send -l -e orders -r order.paid
mqtool worker -q packing -c 15 --exec true
mqtool worker -q packing -c 3 --retries 0 --exec false || true
"""

#: Orders for two workers, which pack them: the third order cannot be packed.
_ORDERS = ["order 17", "order 18", "order 19, broken", "order 20", "order 21", "order 22", "order 23", "order 24"]
_PACKING = "sleep 1.5; ! grep -q broken"


def record(path: Path) -> None:
    """Record the page of `mqtool ui` while orders are published. Two workers pack them, and `receive` gets a copy of
    each order for its invoice.
    """
    with EmbeddedBroker(management_port=0) as broker, tempfile.TemporaryDirectory() as directory, ExitStack() as ending:
        place = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url or ""}
        environment = {**os.environ, **place, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

        def start(command: str, **pipes: int) -> "subprocess.Popen[bytes]":
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(
                ["mqtool", *shlex.split(command)], cwd=directory, env=environment, **{**silent, **pipes}
            )
            ending.callback(process.wait)
            ending.callback(process.send_signal, signal.SIGINT)
            return process

        setup = [line for line in SHOP.splitlines() if " declare " in line or " bind " in line]
        subprocess.run(["sh", "-ec", "\n".join(setup)], env=environment, check=True, capture_output=True)
        publisher = start("send -l -v -e orders -r order.paid", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert publisher.stdin is not None
        assert publisher.stderr is not None

        def publish(order: str) -> None:
            publisher.stdin.write(f"{order}\n".encode())
            publisher.stdin.flush()
            publisher.stderr.readline()

        publish("order 16")
        ready = [Path(directory, each) for each in ("one", "other", "invoices")]
        for each in ready[:2]:
            start(f"worker -q packing --retries 0 --shell --exec {shlex.quote(_PACKING)} --ready-file {each}")
        start(f"receive -q invoices --ready-file {ready[2]}")
        while not all(each.exists() for each in ready):
            time.sleep(0.1)
        page = start(f"ui --record {shlex.quote(str(path.absolute()))}", stdout=subprocess.PIPE)
        assert page.stdout is not None
        page.stdout.readline()
        time.sleep(2)
        for order in _ORDERS:
            publish(order)
            time.sleep(0.6)
        time.sleep(4)
        publisher.stdin.close()


#: Seconds in which the page gets the topology after a change. The recording does not show this pause.
_SETTLES = 2.5


class PlaysRecorder(PlayPage):
    """Records tutorials as `tutorial run --ui` plays them in a browser, but without the pauses for reading."""

    def __enter__(self) -> Self:
        return self

    def say(self, text: str, question: str = "") -> None:
        """Record the text with which a tutorial explains its next step, without waiting until somebody has read it.

        A pause before the text is recorded ensures that all earlier events come before the text in the recording.
        """
        time.sleep(_SETTLES)
        self._continued = self._said + 1
        super().say(text, question)

    def file(self) -> bytes:
        """Return the contents of the HTML file that plays the recording."""
        self._recording.complete()
        return single_file(record for record in self._recording.follow() if record["kind"] != "now")


def record_plays(path: Path, names: Iterable[str]) -> None:
    """Record several tutorials in one HTML file.

    A URL that ends in #NAME plays the tutorial NAME. Without #NAME, the file offers the tutorials to choose from.
    """
    offered = [{"name": name, "title": plays.PLAYS[name].title, "story": plays.PLAYS[name].story} for name in names]
    guard = Guard()
    with PlaysRecorder(offered) as recorder:
        for each in offered:
            play = plays.PLAYS[each["name"]]
            with recorder.watching(play.title, play.story, each["name"]):
                perform(play, recorder, guard)
        path.write_bytes(recorder.file())


def make(name: str) -> Path:
    """Make the recording "messages" or "tutorials", and return the path of its HTML file."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.html"
    if name == SHOP_AT_WORK:
        record(path)
    else:
        record_plays(path, [*pages.NAMES, "why-queues"])
    # mqtool ui --record writes a file that only its user can read; this one is published.
    path.chmod(0o644)
    return path


if __name__ == "__main__":
    # Programs that a shell starts in the background ignore SIGINT. So would the commands, which plays end with Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in sys.argv[1:] or [SHOP_AT_WORK, TUTORIALS]:
        print(make(each))
