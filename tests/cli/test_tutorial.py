"""`tutorial list`, `tutorial show` and `tutorial run`."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from mqtool import plays
from mqtool.amqp import Connection
from mqtool.plays.goals import GOALS
from mqtool.topology import Queue
from mqtool.tutorials import pages
from tests.brokers import LIKE, TestBroker, large, on_any_broker, only_in_ci, speaks_amqp10
from tests.cli.shell import PATIENCE, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_demo import left_behind

#: The longest play takes half a minute; on a busy machine, several times that.
PLAYING = 180.0
ROOT = Path(__file__).parents[2]


def processes_with(text: str) -> list[str]:
    """Return the command lines of the processes on this machine whose environment contains the text."""
    if not Path("/proc/self").exists():
        pytest.skip("this system does not show the environments of processes")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found


class Watched:
    """A command on a terminal of its own, with a user who reads the screen and presses keys."""

    def __init__(self, shell: Shell, columns: int, rows: int, *command: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**shell.environment, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=shell.directory, env=environment, process_group=0
        )
        os.close(theirs)
        self._terminal = ours
        self.seen = ""

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def read(self) -> None:
        if select.select([self._terminal], [], [], 0.05)[0]:
            try:
                self.seen += os.read(self._terminal, 65536).decode("utf-8", "replace")
            except OSError:  # the command has ended
                time.sleep(0.05)

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows a text, which may be wrapped."""
        deadline = time.monotonic() + PATIENCE
        pattern = re.compile(r"\s*".join(re.escape(word) for word in text.split()))
        while not pattern.search(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[│╭╮╰╯]", " ", self.seen)):
            assert time.monotonic() < deadline, f"{text!r} was not shown: {self.seen[-3000:]!r}"
            self.read()

    def end(self) -> int:
        deadline = time.monotonic() + PLAYING
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the command does not end"
            self.read()
        while select.select([self._terminal], [], [], 0)[0]:  # the rest of the output
            before = self.seen
            self.read()
            if self.seen == before:
                break
        return self.process.returncode


def test_tutorial_list_names_every_tutorial(lonely_shell: Shell) -> None:
    """`tutorial list` prints each tutorial's name and summary. With --json, it prints one JSON object per tutorial."""
    listed = lonely_shell.run("mqtool", "tutorial", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["why-queues", *pages.NAMES, "incident"]
    as_json = [
        json.loads(line) for line in lonely_shell.run("mqtool", "tutorial", "list", "--json").stdout.splitlines()
    ]
    assert [f"{each['name']}\t{each['summary']}" for each in as_json] == listed
    assert not any(line.endswith(".") for line in listed)


@pytest.mark.parametrize("columns", [80, 60, 40, 28], ids="{} columns".format)
def test_a_narrow_terminal_does_not_break_the_names_of_tutorials(lonely_shell: Shell, columns: int) -> None:
    """On a narrow terminal, `tutorial list` wraps or leaves out the summaries of the tutorials, and `tutorial try`
    wraps or leaves out their goals. Both print the name of each tutorial on one line, and no line is too long for the
    terminal.
    """
    for command, names in (("list", plays.PLAYS), ("try", GOALS)):
        lines = on_terminal(lonely_shell, "mqtool", "tutorial", command, "--no-color", columns=columns).stdout
        assert set(names) <= set(lines.split())
        assert max(map(len, lines.splitlines()[: len(names)])) <= columns
        assert ("summary" in lines or "goals" in lines) == (columns >= 60)


@pytest.mark.parametrize("name", pages.NAMES)
def test_tutorial_show_prints_diagram_explanation_commands_and_source(lonely_shell: Shell, name: str) -> None:
    """`tutorial show` prints a tutorial's diagram, explanation, commands, link and source. The diagram fits into 80
    columns.
    """
    page = pages.page(name)
    shown = lonely_shell.run("mqtool", "tutorial", "show", name)
    assert (shown.stderr, shown.code) == ("", 0)
    for part in (page.picture, *page.story, page.source, page.link, *(command for _, command in page.terminals)):
        assert part.strip()
        assert part in shown.stdout
    assert page.source in (ROOT / page.file).read_text()
    assert max(map(len, page.picture.splitlines())) <= 78, "the diagram would be wrapped at 80 columns"
    assert max(text.count("\n") for text in ((ROOT / page.file).read_text(), page.plain)) <= 70, (
        "the source is too long"
    )


def test_tutorial_show_is_coloured_and_fits_into_80_columns_above_the_source_code(lonely_shell: Shell) -> None:
    """On a terminal, `tutorial show` prints in colour, and everything above the tutorial's source code fits into 80
    columns.
    """
    watched = Watched(lonely_shell, 80, 24, "mqtool", "tutorial", "show", "routing")
    assert watched.end() == 0
    assert "\x1b[" in watched.seen
    plain = re.sub(r"\x1b\[[0-9;]*m", "", watched.seen)
    page, _, source = plain.partition("from collections.abc import")
    assert "return channel.consume(queue, receiving)" in source
    assert max(len(line.rstrip()) for line in page.splitlines()) <= 80
    assert "info, warning, error ─> [amq.gen-2] ─> screen" in page


def test_tutorial_show_suggests_a_pager_if_the_terminal_is_too_short(lonely_shell: Shell) -> None:
    """If the output of `tutorial show` is longer than the terminal, the last line of the output is a command that shows
    the tutorial in a pager. On a tall terminal or in a pipe, there is no such line.
    """
    told = "To read it page by page: mqtool tutorial show routing | less"
    watched = Watched(lonely_shell, 80, 24, "mqtool", "tutorial", "show", "4", "--no-color")
    assert watched.end() == 0
    assert watched.seen.splitlines()[-1].strip() == told
    watched = Watched(lonely_shell, 80, 120, "mqtool", "tutorial", "show", "4", "--no-color")
    assert watched.end() == 0
    assert told not in watched.seen
    piped = lonely_shell.run("mqtool", "tutorial", "show", "4")
    assert told not in piped.stdout + piped.stderr


def test_tutorial_show_plain_prints_the_script_in_colour_on_a_terminal(lonely_shell: Shell) -> None:
    """`tutorial show --plain` prints the source code of a script that does the same as the tutorial, but without
    mqtool. On a terminal, the source code is coloured, but otherwise unchanged.
    """
    watched = Watched(lonely_shell, 80, 24, "mqtool", "tutorial", "show", "rpc", "--plain")
    assert watched.end() == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", watched.seen).replace("\r\n", "\n")
    assert plain == pages.page("rpc").plain != watched.seen


def test_tutorials_can_be_selected_by_rabbitmqs_numbers(lonely_shell: Shell) -> None:
    """`tutorial show 3` shows RabbitMQ's third tutorial, publish-subscribe. On a terminal, `tutorial list` prints the
    numbers of RabbitMQ's tutorials.
    """
    assert "publish_subscribe.py" in lonely_shell.run("mqtool", "tutorial", "show", "3").stdout
    watched = Watched(lonely_shell, 80, 24, "mqtool", "tutorial", "list", "--no-color")
    assert watched.end() == 0
    assert re.search(r"^3 +publish-subscribe ", watched.seen, re.MULTILINE)
    assert lonely_shell.run("mqtool", "tutorial", "run", "8").code == 2


def test_tutorial_show_and_run_suggest_a_name_for_an_unknown_tutorial(lonely_shell: Shell) -> None:
    """If the tutorial's name is unknown, `tutorial show` and `tutorial run` exit with 2, and the hint suggests the
    most similar name, or the first one that contains a similar word. If no name is similar, the hint lists the
    tutorials.
    """
    for command in ("show", "run"):
        for typed, hint in {
            "heloworld": "did you mean 'hello-world'?\n",
            "helo": "did you mean 'hello-world'?\n",
            "confirm": "did you mean 'publisher-confirms'?\n",
            "nosuch": "tutorials: ",
        }.items():
            refused = lonely_shell.run("mqtool", "tutorial", command, typed)
            assert refused.code == 2
            assert refused.stderr.startswith(f"mqtool: unknown tutorial {typed!r}\nhint: {hint}")


def test_tutorial_run_starts_and_stops_its_own_broker(lonely_shell: Shell) -> None:
    """If no broker is running, `tutorial run` starts a broker, runs the tutorial's commands on this broker, and leaves
    no processes or files behind.
    """
    lonely_shell.environment["TUTORIAL_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    played = lonely_shell.run("mqtool", "tutorial", "run", "hello-world", "rpc", "--auto", timeout=PLAYING)
    assert (played.stderr, played.code) == ("", 0)
    for line in (
        "sender   │ $ mqtool send 'Hello World!'\n",
        "receiver │  [x] Received Hello World!\n",
        "client │  [.] Got 832040\n",
        "✓ the receiver got both messages, including the one sent before it started\n",
        "✓ the client says that there is no server, and exits with 69\n",
    ):
        assert line in played.stdout
    wait_until(lambda: not processes_with(mark), "no process that the command has started")
    assert not [path for path in lonely_shell.directory.iterdir() if path.suffix != ".ready"]


@pytest.mark.timeout(600)
def test_every_tutorial_runs_on_rabbitmq_and_leaves_nothing_behind(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """On RabbitMQ, each tutorial that the broker supports passes its checks and leaves no queue or exchange of its own
    behind. A queue that existed before the tutorials keeps its messages.
    """
    only_in_ci("all tutorials take a minute, and 'make demo' runs them on the embedded broker")
    if broker.kind == "embedded":
        pytest.skip("'make demo' runs all tutorials")
    channel = connection.channel()
    channel.declare(Queue("hello", durable=True, arguments={"x-queue-type": "quorum"}))
    shell.run("mqtool", "send", "mine")

    left_out = [] if broker.streams else ["stream-"]
    left_out += [] if speaks_amqp10(broker) else ["amqp10-"]
    names = [name for name in plays.PLAYS if not name.startswith(tuple(left_out))]
    played = shell.run("mqtool", "tutorial", "run", "--auto", *names, timeout=PLAYING * 3)

    assert (played.stderr, played.code) == ("", 0)
    for name in names:
        assert plays.PLAYS[name].title in played.stdout
    assert left_behind(broker) == ["hello"]
    assert channel.depth_of("hello") == 1


def test_two_runs_of_a_tutorial_on_one_broker_do_not_disturb_each_other(shell: Shell, broker: TestBroker) -> None:
    """If a tutorial runs twice at the same time on one broker, each run uses and deletes only its own queues: both pass
    their checks, and leave no queue behind.
    """
    watched = Watched(shell, 100, 30, "mqtool", "tutorial", "run", "hello-world")
    watched.wait_for("Nobody is receiving yet.")
    watched.press("\n")
    watched.wait_for("[x] Sent 'Hello World!'")

    other = shell.run("mqtool", "tutorial", "run", "hello-world", "--no-pause", timeout=PLAYING)

    assert (other.stderr, other.code) == ("", 0)
    for text in ("Now start a receiver.", "The receiver is waiting", "That was Hello World."):
        watched.wait_for(text)
        watched.press("\n")
    assert watched.end() == 0
    assert left_behind(broker) == []


@on_any_broker
def test_tutorials_over_amqp_1_0_are_skipped_on_a_broker_that_does_not_speak_it(
    shell: Shell, broker: TestBroker
) -> None:
    """On RabbitMQ 3, `tutorial run` skips the tutorials over AMQP 1.0, runs the others, and says at the end which it
    skipped, and why. If it can run none, it exits with 69.
    """
    if LIKE != "3.10":
        pytest.skip("this broker speaks AMQP 1.0")
    names = ("amqp10-hello-world", "hello-world", "amqp10-routing")
    played = shell.run("mqtool", "tutorial", "run", *names, "--no-pause", "--lines", timeout=PLAYING)
    assert played.code == 0, played.stdout + played.stderr
    assert "1 tutorial, 1 check passed" in played.stdout
    assert played.stderr.startswith("skipped amqp10-hello-world, amqp10-routing: ")
    assert "AMQP 1.0" in played.stderr
    alone = shell.run("mqtool", "tutorial", "run", "amqp10-hello-world", "--no-pause", "--lines")
    assert (alone.code, "AMQP 1.0" in alone.stderr, alone.stdout) == (69, True, "")


def test_why_queues_shows_that_a_queue_decouples_sender_and_consumers(shell: Shell, broker: TestBroker) -> None:
    """The tutorial `why-queues` measures how long a customer waits: at least 200 ms if the shop waits until the order
    is packed, and less than 200 ms if the shop puts the order into a queue. Orders stay in the queue while a consumer
    is stopped, and a burst of orders waits in the queue instead of slowing the sender down.
    """
    only_in_ci("it takes half a minute")
    played = shell.run("mqtool", "tutorial", "run", "why-queues", "--auto", timeout=PLAYING)
    assert (played.stderr, played.code) == ("", 0)
    assert "waiting for mail, at most 25" in played.stdout
    assert "both departments got all 50 orders, each once, in order" in played.stdout
    [direct, queued] = re.search(  # type: ignore[union-attr]
        r"A customer waited (\d+) ms \(median; [^)]*\) when .* and (\d+) ms \(median; ", played.stdout
    ).groups()
    assert int(direct) >= 200 > int(queued)
    [depth] = re.search(r"Up to (\d+) orders waited in it", played.stdout).groups()  # type: ignore[union-attr]
    assert int(depth) >= 20
    assert "all 49 orders were packed, at the packer's own pace" in played.stdout


def test_tutorial_run_asks_before_a_scene_and_answers_after_it(lonely_shell: Shell) -> None:
    """Before the commands of a scene run, `tutorial run` asks the user what will happen. When the commands have run, it
    prints the answer to this question, and then the results of its checks of what the commands did.
    """
    lines = lonely_shell.run("mqtool", "tutorial", "run", "headers", "--no-pause").stdout.splitlines()
    question, command, answer, check = (
        next(index for index, line in enumerate(lines) if text in line)
        for text in (
            "What will happen? Two messages have",
            "A report, printed",
            "Answer: The first receiver gets one",
            "✓ --match all",
        )
    )
    assert question < command < answer < check


@pytest.mark.parametrize(
    ("name", "scenes"),
    [
        ("publish-subscribe", [("Look at the broker", "Now stop the receivers")]),
        ("routing", [("A direct exchange routes", "So far")]),
        ("topics", [("Send four messages", "Now stop"), ("A key may", "The official"), ("topic '*'", "And the last")]),
        ("headers", [("A headers exchange ignores", "Now stop")]),
    ],
    ids=["publish-subscribe", "routing", "topics", "headers"],
)
@pytest.mark.sampled(1)
def test_the_receivers_of_a_scene_run_until_the_next_scene_has_been_explained(
    lonely_shell: Shell, name: str, scenes: list[tuple[str, str]]
) -> None:
    """In `tutorial run`, receivers with temporary queues keep running at the end of their scene. They end only after
    the next scene has been explained. The picture of `tutorial run --ui` therefore shows their queues during the whole
    scene.
    """
    played = lonely_shell.run("mqtool", "tutorial", "run", name, "--no-pause", timeout=PLAYING).stdout
    for explained, following in scenes:
        scene = played[played.index(explained) :].partition(following)[0]
        assert "$ mqtool emit-log" in scene or "$ mqtool list" in scene
        assert "^C" not in scene, explained


def test_tutorial_run_exits_with_0_as_a_background_job(lonely_shell: Shell) -> None:
    """If `tutorial run` is a background job, so that its commands ignore SIGINT, `tutorial run` still stops its
    receivers and exits with 0.
    """
    played = lonely_shell.script("mqtool tutorial run hello-world --auto & wait $!", timeout=PLAYING)
    assert (played.stderr, played.code) == ("", 0)
    assert "✓ the receiver got both messages" in played.stdout


def test_tutorial_run_starts_no_broker_if_the_command_line_names_one(lonely_shell: Shell) -> None:
    """If -u names a broker that does not answer, `tutorial run` exits with 69 and starts no broker."""
    refused = lonely_shell.run("mqtool", "tutorial", "run", "hello-world", "-u", "amqp://127.0.0.1:1")
    assert refused.code == 69
    assert "no broker answers at 127.0.0.1:1" in refused.stderr


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.sampled(1)
@large
def test_tutorial_run_leaves_no_process_after_a_signal(lonely_shell: Shell, number: signal.Signals) -> None:
    """After SIGINT, SIGTERM, SIGHUP or SIGKILL, `tutorial run` ends with exit code 128 plus the signal's number. No
    command and no broker that it has started is left running.
    """
    lonely_shell.start_cold()  # a preloaded command has the environment of its server
    lonely_shell.environment["TUTORIAL_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    running = lonely_shell.start("mqtool", "tutorial", "run", "work-queues", "--auto", ready=False)
    running.wait_for_stdout("Received long..")
    wait_until(lambda: len(processes_with(mark)) >= 5, "the play, its guard, its broker and two workers")

    running.process.send_signal(number)

    ended = running.wait()
    assert ended.code == 128 + number
    wait_until(lambda: not processes_with(mark), "no process that the command has started")
    if number is not signal.SIGKILL:
        assert ended.stderr == "interrupted; everything it started has been stopped\n"


def test_an_interrupted_tutorial_deletes_its_queues_and_exchanges(shell: Shell, broker: TestBroker) -> None:
    """If `tutorial run` uses an existing broker and is interrupted with Ctrl-C, it deletes the queues and exchanges
    that it has declared.
    """
    running = shell.start("mqtool", "tutorial", "run", "work-queues", "--auto", ready=False)
    running.wait_for_stdout("Received long..")
    assert running.interrupt().wait().code == 130
    assert left_behind(broker) == []


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.sampled(1)
def test_tutorial_run_waits_for_enter_before_each_step(lonely_shell: Shell, columns: int, rows: int) -> None:
    """On a terminal, `tutorial run` waits for Enter before each step. At the end, it restores the screen and prints the
    results of its checks.
    """
    watched = Watched(lonely_shell, columns, rows, "mqtool", "tutorial", "run", "hello-world")
    watched.wait_for("Nobody is receiving yet.")
    watched.wait_for("Enter: continue")
    assert "$ mqtool send" not in watched.seen
    watched.press("\n")
    watched.wait_for("[x] Sent 'Hello World!'")
    watched.wait_for("1 ready")  # the queue, between the panes
    for text in ("Now start a receiver.", "The receiver is waiting", "That was Hello World."):
        watched.wait_for(text)
        watched.press("\n")
    watched.wait_for("next: mqtool tutorial run work-queues")
    assert watched.end() == 0
    before, _, after = watched.seen.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in before
    assert "✓" in after
    assert "Traceback" not in watched.seen


def test_the_key_q_ends_tutorial_run(lonely_shell: Shell) -> None:
    """On a terminal, the key q ends `tutorial run` with exit code 0, and the terminal's settings are restored."""
    watched = Watched(lonely_shell, 100, 30, "mqtool", "tutorial", "run", "hello-world")
    watched.wait_for("Enter: continue")
    watched.press("q")
    assert watched.end() == 0
    flags = termios.tcgetattr(watched._terminal)[3]
    assert flags & termios.ICANON
    assert flags & termios.ECHO


def test_tutorial_run_prints_lines_instead_of_panes_on_a_narrow_terminal(lonely_shell: Shell) -> None:
    """If the terminal is too narrow to show each program in a pane of its own, `tutorial run` prints lines one below
    the other. Each line begins with the name that the program's pane would have, such as `sender`.
    """
    watched = Watched(lonely_shell, 50, 24, "mqtool", "tutorial", "run", "hello-world")
    watched.wait_for("Enter: continue")
    watched.press("\n")
    watched.wait_for("sender $ mqtool send")
    watched.press("q")
    assert watched.end() == 0
    assert "\x1b[?1049h" not in watched.seen


@pytest.mark.parametrize("columns", [50, 100], ids="{} columns".format)
@pytest.mark.sampled(1)
def test_tutorial_run_shows_the_url_of_its_broker(lonely_shell: Shell, columns: int) -> None:
    """While `tutorial run` waits for Enter, it shows the URL of the broker that it has started, with or without panes.
    Commands in other terminals can use that URL.
    """
    watched = Watched(lonely_shell, columns, 24, "mqtool", "tutorial", "run", "hello-world")
    watched.wait_for("Enter: continue")
    found = re.search(r"[Ii]ts broker\b[^:]*:?\s*(amqp://127\.0\.0\.1:\d+)", watched.seen)
    assert found, watched.seen
    listed = lonely_shell.run("mqtool", "list", "queues", f"--url={found[1]}")
    assert (listed.code, listed.stderr) == (0, "no queues in vhost '/'\n")
    watched.press("q")
    assert watched.end() == 0


@large
def test_work_queues_shows_that_a_killed_workers_task_and_a_persistent_message_survive(lonely_shell: Shell) -> None:
    """In `tutorial run work-queues`, Ctrl-C kills a worker during its task, and the broker redelivers the task to the
    other worker. Of two messages, only the persistent one survives a restart of the broker.
    """
    played = lonely_shell.run("mqtool", "tutorial", "run", "work-queues", "--auto", timeout=PLAYING)
    assert played.code == 0
    assert (
        "the killed worker's task was not lost: it was redelivered to worker 2, which did it"
        in played.stdout + played.stderr
    )
    assert "slow..., redelivered 0\n" in played.stdout
    assert "^C" in played.stdout
    assert "of the two notes, only the persistent one has survived" in played.stdout, "durability: the broker restarts"


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        (
            "publish-subscribe",
            [
                "exchange logs has 2 bindings, each to a queue of its own",
                "the queues and their bindings are gone, but the exchange is still there",
            ],
        ),
        ("routing", ["the named queue kept the messages that arrived in the meantime"]),
        (
            "topics",
            [
                "'kern.#' got all three keys: # matches zero or more words",
                "'*' got 'word' only",
                "'#.*' got '..', 'word' only",
                "'a.*.#' got 'a.b', 'a.b.c' only",
                "'a.#' got 'a', 'a.b', 'a.b.c' only",
            ],
        ),
    ],
    ids=["publish-subscribe", "routing", "topics"],
)
@pytest.mark.sampled(1)
def test_tutorial_run_checks_the_statements_of_the_official_tutorials(
    lonely_shell: Shell, name: str, checks: list[str]
) -> None:
    """In the tutorials publish-subscribe, routing and topics, `tutorial run` checks statements of RabbitMQ's own
    tutorials. It checks, for example, that a named queue keeps messages while its receiver is stopped, and which keys
    the pattern `#.*` matches.
    """
    played = lonely_shell.run("mqtool", "tutorial", "run", name, "--auto", timeout=PLAYING)
    assert played.code == 0
    for check in checks:
        assert f"✓ {check}\n" in played.stdout


def test_the_shell_completes_tutorial_names(lonely_shell: Shell) -> None:
    """For `tutorial run`, shell completion offers all tutorials. For `tutorial show`, it offers only the tutorials that
    `tutorial show` can show; `why-queues` is not one of them.
    """

    def completed(words: str) -> list[str]:
        return lonely_shell.run("mqtool", environment={"_MQTOOL_COMPLETE": words}).stdout.split()

    assert completed("mqtool tutorial run w") == ["why-queues", "work-queues"]
    assert completed("mqtool tutorial show w") == ["work-queues"]
