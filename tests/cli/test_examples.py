"""The examples of --help, typed on a terminal, each in an empty directory and virtual host of one broker."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.brokers import TestBroker, free_port, large
from tests.cli import preloaded
from tests.cli.test_documentation import commands
from tests.protocol.broker_process import BrokerProcess

CTRL_C = "\x03"
#: Seconds for one example on a busy machine.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Typing:
    """How an example is typed.

    Attributes:
        before: what is typed first. It must succeed.
        until: the user presses Ctrl-C once this text has appeared; "" if the example ends by itself.
        rest: options that are appended, so that the example takes less time, or uses a free port.
        keys: what the user types when the text before it appears, besides "y" and passwords, which are always typed.
        code: the exit code.
    """

    before: str = ""
    until: str = ""
    rest: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    code: int = 0


JOBS = "mqtool queue declare jobs; mqtool send -q jobs one two"
#: A dead letter of the queue `jobs`.
DEAD = (
    "mqtool send -q jobs --property message-id=5f0c… one; mqtool queue declare jobs-by-hand; "
    "mqtool worker -q jobs -c 1 --retries 0 --exec false || true"
)
DELAYED = (
    "mqtool queue declare jobs; mqtool send -r jobs --via ttl --delay 1h -H tenant=a --property message-id=5f0c… later"
)
CONTEXTS = (
    "mqtool context add staging -u $MQTOOL_URL; mqtool context use staging; "
    "mqtool context add prod --url amqps://ann@mq.example.com --password-command 'pass show mq' --protected"
)
DEFINITIONS = (
    "mqtool queue declare jobs; mqtool definitions export | tee old.json definitions.json file.json > topology.json"
)
STREAMS = "echo 'a report' | mqtool send-stream -l -q app; mqtool offset set app reports 0"
EXCHANGES = (
    "mqtool exchange declare topic_logs topic; mqtool exchange declare headers_logs headers; "
    "mqtool exchange declare logs fanout; "
    "mqtool queue declare audit; mqtool queue declare pdfs; mqtool exchange bind topic_logs audit 'kern.*'"
)
RECORDED = (
    "mqtool exchange declare orders fanout; mqtool exchange declare logs fanout; "
    "mqtool send -q jobs '{\"total\": 101}'; mqtool receive -q jobs -c 1 --json | tee saved > incident.ndjson; "
    'echo \'{"body": "x", "properties": {"message_id": "1"}}\' | tee got.ndjson > sent.ndjson'
)
ANN = "mqtool user add ann --password-file - <<< secret"
LIMITS = "mqtool policy set limits --pattern '^jobs' --definition '{\"max-length\": 1000}'"
#: What is in the directory: logs, messages, and programs of the user.
FILES = (
    "echo 'kern[1]: critical' > app.log; echo secret | tee new-secret > secret; "
    "echo '{\"body\": \"x\"}' | tee saved > messages.ndjson; echo 'topic_logs kern.critical -> audit' > routes.txt; "
    "printf '#!/bin/sh\\ncat > /dev/null\\n' | tee report > resize; printf '#!/bin/sh\\n' | tee nano > pass; "
    # A log that does not grow any more.
    "printf '#!/bin/sh\\nexec cat $2\\n' > tail; chmod +x report resize nano pass tail; "
    "mkdir -p .config/fish/completions"
)
WAITING = "To exit press CTRL+C"
SECOND = "mqtool broker up --kind embedded --name second --port $FREE_PORT --management-port $FREE_PORT_TOO"

#: How the examples of a command, or one example, are typed, if it takes more than typing it and waiting for its end.
TYPED: dict[str, Typing] = {
    "mqtool bench": Typing(rest=" --duration 300ms"),
    "mqtool broker down --name": Typing(SECOND),
    "mqtool broker logs": Typing(SECOND, rest=" --name second"),
    "mqtool broker logs -f": Typing(SECOND, until="listening", rest=" --name second"),
    "mqtool broker env": Typing(SECOND, rest=" --name second"),
    "mqtool broker restart": Typing(SECOND, rest=" --name second"),
    "mqtool broker restart --name": Typing(SECOND),
    "mqtool broker rm": Typing(f"{SECOND}; mqtool broker down --name second"),
    "mqtool broker up --kind": Typing(rest=" --port $FREE_PORT --management-port $FREE_PORT_TOO"),
    "mqtool broker serve --port": Typing(until="amqp://"),
    "mqtool broker serve --management-port": Typing(until="listening", rest=" --port 0 --management-port 0"),
    "mqtool connection close": Typing(f"{ANN}; {JOBS}"),
    "mqtool context use": Typing(CONTEXTS),
    "mqtool context show": Typing(CONTEXTS),
    "mqtool context rm": Typing(CONTEXTS),
    "mqtool definitions": Typing(DEFINITIONS),
    "mqtool delayed": Typing(DELAYED),
    "mqtool delayed relay": Typing("mqtool exchange declare events topic", until=WAITING),
    "mqtool delayed migrate": Typing("mqtool exchange declare tasks x-delayed-message --argument x-delayed-type=topic"),
    "mqtool dlq": Typing(DEAD),
    "mqtool doctor definitions.json --upgrade 4.3 --format sarif": Typing(DEFINITIONS, code=3),
    "mqtool doctor --upgrade 4.3 --traffic orders": Typing(RECORDED, rest=" --for 300ms"),
    "mqtool drill": Typing(rest=" --kind embedded"),
    "mqtool exchange": Typing(EXCHANGES),
    "mqtool exchange declare": Typing(),
    "mqtool list queues --where 'messages_ready>0' --sort -messages_ready --watch 1s": Typing(JOBS, until="jobs"),
    "mqtool move": Typing(f"{JOBS}; {CONTEXTS}; mqtool queue declare jobs-old; mqtool queue declare slow"),
    "mqtool move jobs --to jobs --to-context staging": Typing(
        f"{JOBS}; mqtool context add staging -u ${{MQTOOL_URL%/*}}/staging; mqtool -C staging queue declare jobs"
    ),
    "mqtool offset": Typing(STREAMS),
    "mqtool offset receive": Typing(until="ress control"),
    "mqtool peek": Typing(f"{JOBS}; mqtool send-stream -q events x"),
    "mqtool permission": Typing(f"{ANN}; mqtool permission set ann --read '.*'"),
    "mqtool policy": Typing(LIMITS),
    "mqtool policy set": Typing(),
    "mqtool publisher-confirms": Typing(rest=" -c 2000"),
    "mqtool queue": Typing(JOBS),
    "mqtool queue declare": Typing(),
    "mqtool queue convert": Typing("mqtool queue declare jobs --queue-type classic --durable"),
    "mqtool receive": Typing(until=WAITING),
    "mqtool receive-delayed": Typing(until=WAITING),
    "mqtool receive-log": Typing(until=WAITING),
    "mqtool receive-stream": Typing(STREAMS, until="ress control"),
    "mqtool recording": Typing(RECORDED),
    "mqtool route": Typing(EXCHANGES),
    "mqtool receive --json | mqtool": Typing(RECORDED, until=WAITING),
    "mqtool receive-stream -q app --track reports | ./report": Typing(STREAMS, until="ress control"),
    "mqtool rpc-client": Typing(
        "setsid mqtool rpc-server --idle-timeout 30s --ready-file ready > /dev/null 2>&1 < /dev/null & "
        "until [ -e ready ]; do sleep 0.1; done"
    ),
    "mqtool rpc-server": Typing(until="waiting"),
    "mqtool tap": Typing(f"{RECORDED}; mqtool exchange bind orders jobs", until=WAITING),
    "mqtool tap --all --firehose --idle-timeout 10s": Typing(rest=" --idle-timeout 1s"),
    "mqtool tap orders --json | mqtool": Typing(RECORDED, until=WAITING),
    "mqtool tap logs --json | mqtool": Typing(RECORDED, until=WAITING, rest=" -u $MQTOOL_URL"),
    "mqtool top": Typing(until="queue"),
    "mqtool top --once": Typing(JOBS),
    "mqtool topology": Typing(EXCHANGES),
    "mqtool topology --live": Typing(EXCHANGES, until="audit"),
    "mqtool user": Typing(ANN),
    "mqtool user add": Typing(),
    "mqtool vhost": Typing(),
    "mqtool vhost add staging": Typing("mqtool vhost delete staging --yes"),
    "mqtool ui": Typing(until="http://", rest=" --vhost staging"),
    "mqtool worker": Typing(until=WAITING),
    "mqtool tutorial run": Typing(keys=(("Enter: ", "q"),)),
    "mqtool tutorial try": Typing(keys=(("q: quit", "q"),)),
    "mqtool tutorial run --ui": Typing(until="http://", code=130),
}
#: Examples that are not typed, and why.
NOT_TYPED: dict[str, str] = {
    "mqtool connection close '127.0.0.1:49152 -> 127.0.0.1:5672'": "no connection has this name",
    "mqtool drill kill-node": "it needs three RabbitMQ nodes: tests/cli/test_drills.py runs it",
    "mqtool plugin enable rabbitmq_shovel": "the embedded broker has no plugins",
    "mqtool plugin disable rabbitmq_shovel --yes": "the embedded broker has no plugins",
}


def examples() -> list[str]:
    """The examples of all commands, in the order of the reference."""
    return [example for command in commands().values() for example in command.examples]


def is_of(example: str, name: str) -> bool:
    return example == name or example.startswith(f"{name} ")


def typing_of(example: str) -> Typing:
    """Return how to type an example: its own entry in the table, or that of its command."""
    words = [name for name in TYPED if is_of(example, name)]
    return TYPED[max(words, key=len)] if words else Typing()


class Terminal:
    """A terminal in a directory of its own.

    Args:
        directory: the home and working directory.
        environment: the variables of what is typed.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self.seen = ""

    def type(self, line: str, typing: Typing) -> int:
        """Type a line, answer its questions, and return its exit code."""
        screen, terminal = pty.openpty()
        child = subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {line}"], cwd=self._directory, env=self._environment,
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
        )  # fmt: skip
        os.close(terminal)
        keys = [("[y/N]", "y\n"), ("assword", "secret\n"), ("Repeat", "secret\n"), *typing.keys]
        keys += [(typing.until, CTRL_C)] if typing.until else []
        answered = {cue: self.seen.count(cue) for cue, _ in keys}
        deadline = time.monotonic() + _PATIENCE
        try:
            while child.poll() is None and time.monotonic() < deadline:
                self._read(screen)
                for cue, typed in keys:
                    if self.seen.count(cue) > answered[cue]:
                        answered[cue] = self.seen.count(cue)
                        os.write(screen, typed.encode())
            self._read(screen)
            code = child.poll()
            return -1 if code is None else code
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            os.close(screen)

    def _read(self, screen: int) -> None:
        while select.select([screen], [], [], 0.05)[0]:
            try:
                data = os.read(screen, 65536)
            except OSError:  # no process has the terminal open any more
                time.sleep(0.01)
                return
            self.seen += data.decode(errors="replace")


@large
@pytest.mark.timeout(1500)
def test_the_examples_in_the_help_run_as_printed(tmp_path: Path) -> None:
    """Each example in --help, typed as printed, exits with 0, or with the code that a table in test_examples.py gives
    for it, and prints no traceback. To save time, the test adds an option to some examples. It leaves out examples that
    need plugins or three RabbitMQ nodes.
    """
    failed = {}
    (tmp_path / "broker").mkdir()
    with BrokerProcess(tmp_path / "broker", "--in-memory", "--management-port=0", "--stream-port=0") as process:
        broker = TestBroker("embedded", process.url.rsplit("/", 1)[0], process.management_url)
        for number, example in enumerate(examples()):
            if example in NOT_TYPED:
                continue
            with contextlib.suppress(urllib.error.HTTPError):
                broker.api("DELETE", "users/ann")
            broker.api("PUT", "vhosts/staging")
            vhost = broker.with_fresh_vhost(f"example{number}")
            home = tmp_path / f"home{number}"
            home.mkdir()
            terminal = Terminal(home, environment(home, vhost, process))
            typing = typing_of(example)
            prepared = terminal.type(f"set -eu; {FILES}; {typing.before or ':'}", Typing())
            code = terminal.type(example + typing.rest, typing)
            if example.startswith("mqtool broker"):
                terminal.type("mqtool broker down --name second", Typing())
            vhost.drop_vhost()
            said = terminal.seen
            if prepared or not is_expected(code, example, typing) or "Traceback" in said or "unexpected error" in said:
                failed[example] = f"exit code {code}: {said[-1000:]}"
    assert failed == {}


def test_the_tables_of_examples_are_up_to_date() -> None:
    """Each entry of the tables in test_examples.py names an example that some command's --help shows, or a command that
    has such examples.
    """
    found = examples()
    assert [name for name in TYPED if not any(is_of(each, name) for each in found)] == []
    assert [name for name in NOT_TYPED if name not in found] == []


def is_expected(code: int, example: str, typing: Typing) -> bool:
    """True if an example may exit with this code. Ctrl-C ends a pipe's last command by SIGINT or at end of file."""
    return code in ((0, 130, -signal.SIGINT) if typing.until and " | " in example else (typing.code,))


def environment(home: Path, vhost: TestBroker, process: BrokerProcess) -> dict[str, str]:
    """The variables of a terminal. Its programs come first on the PATH."""
    return {
        "HOME": str(home),
        "COLUMNS": "100",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "EDITOR": "nano",
        "BROWSER": "true",
        "PATH": f"{home}:{preloaded.where()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MQTOOL_URL": vhost.url,
        "MQTOOL_MANAGEMENT_URL": vhost.management,
        "MQTOOL_STREAM_PORT": str(urlsplit(process.stream_url).port),
        "FREE_PORT": str(free_port()),
        "FREE_PORT_TOO": str(free_port()),
    }
