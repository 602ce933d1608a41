"""The scripts that `tutorial show --plain` prints run as printed, and work together with mqtool's own commands."""

import ast
import sys

import pytest

from mqtool.tutorials import pages
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Result, Running, Shell

WAITING = " [*] Waiting for messages. To exit press CTRL+C\n"
WAITING_FOR_LOGS = " [*] Waiting for logs. To exit press CTRL+C\n"


class Room:
    """A shell for mqtool and for scripts that mqtool has printed; both find the broker by AMQP_URL."""

    def __init__(self, shell: Shell, url: str) -> None:
        self.shell = shell
        shell.environment |= {"AMQP_URL": url, "PYTHONUNBUFFERED": "1"}  # the output is read while the script runs
        shell.environment.pop("MQTOOL_URL")

    def printed(self, tutorial: str) -> None:
        printed = self.shell.run("mqtool", "tutorial", "show", tutorial, "--plain")
        assert (printed.stderr, printed.code) == ("", 0)
        (self.shell.directory / "script.py").write_bytes(printed.stdout_bytes)

    def script(self, *words: str) -> Result:
        result = self.shell.run("script", "script.py", *words)
        assert (result.stderr, result.code) == ("", 0)
        return result

    def start_script(self, *words: str) -> Running:
        return self.shell.start("script", "script.py", *words, ready=False).wait_for_stdout("\n")

    def start_mqtool(self, *words: str) -> Running:
        return self.shell.start("mqtool", *words).wait_until_ready()

    def mqtool(self, *words: str) -> Result:
        result = self.shell.run("mqtool", *words)
        assert result.code == 0
        assert "using the one that is there" not in result.stderr, "the script has declared it with other arguments"
        assert "already exists" not in result.stderr
        return result


@pytest.fixture
def room(shell: Shell, broker: TestBroker) -> Room:
    return Room(shell, broker.url)


def ends_well(script: Running) -> None:
    """Press Ctrl-C, and assert that the script ends without a traceback."""
    ended = script.interrupt().wait()
    assert (ended.stderr, ended.code) == ("", 0)


@pytest.mark.parametrize("first", ["mqtool", "script"])
@pytest.mark.sampled(1)
def test_the_script_of_hello_world_exchanges_messages_with_send_and_receive(room: Room, first: str) -> None:
    """`tutorial show hello-world --plain` prints a pika script that can send and receive messages. The script
    receives what `mqtool send` has sent, and `mqtool receive` receives what the script has sent. Either sender
    declares the queue if it is missing.
    """
    room.printed("hello-world")
    send = {"mqtool": lambda: room.mqtool("send"), "script": lambda: room.script("send", "Good", "morning!")}
    send[first]()
    receive = {"mqtool": "script", "script": "mqtool"}[first]
    if receive == "script":
        receiver = room.start_script("receive").wait_for_stdout("Hello World!")
        ends_well(receiver)
        assert receiver.stdout == f"{WAITING} [x] Received Hello World!\n"
    else:
        assert room.mqtool("receive", "-c", "1").stdout == " [x] Received Good morning!\n"


@pytest.mark.parametrize("first", ["mqtool", "script"])
@pytest.mark.sampled(1)
def test_the_script_of_work_queues_exchanges_tasks_with_new_task_and_worker(room: Room, first: str) -> None:
    """`tutorial show work-queues --plain` prints a script that can send and handle tasks. The script handles the tasks
    that `new-task` sends, and `worker` handles the tasks that the script sends.
    """
    room.printed("work-queues")
    if first == "script":
        assert room.script("new-task", "A", "task").stdout == " [x] Sent A task\n"
        assert room.mqtool("worker", "-c", "1").stdout == " [x] Received A task\n"
    else:
        room.mqtool("new-task", "A task")
        room.mqtool("new-task", "Next")
        # The script gets the next task only after it has acknowledged the first, which is after it has printed "Done".
        worker = room.start_script("worker").wait_for_stdout("Received Next")
        ends_well(worker)
        assert worker.stdout.startswith(f"{WAITING} [x] Received A task\n [x] Done\n")
        assert "A task" not in room.mqtool("receive", "-q", "task_queue", "--idle-timeout", "300ms").stdout


#: Raises KeyboardInterrupt when pika has buffered the acknowledgement, but not yet asked to be told when it can write.
INTERRUPTED = """
import runpy, sys
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter as Services

set_writer = Services.set_writer

def interrupted(*_):
    Services.set_writer = set_writer
    raise KeyboardInterrupt

def say(text):
    print(text)
    if "Done" in text:
        Services.set_writer = interrupted

runpy.run_path("script.py", {"print": say}, "__main__")
assert Services.set_writer is set_writer, "nothing was interrupted"
"""


@on_any_broker
def test_the_worker_script_ends_at_ctrl_c_during_an_acknowledgement(room: Room) -> None:
    """If Ctrl-C is pressed while the worker script of `tutorial show work-queues --plain` acknowledges a task, the
    script exits with 0 and does not hang.
    """
    room.printed("work-queues")
    room.script("new-task", "A task")
    (room.shell.directory / "interrupted.py").write_text(INTERRUPTED)
    worker = room.shell.run("script", "interrupted.py", "worker", timeout=20)
    assert (worker.stdout, worker.stderr, worker.code) == (f"{WAITING} [x] Received A task\n [x] Done\n", "", 0)


LOGS = {
    "publish-subscribe": ("fanout", [], [], ["Run. Run."], ["Run. Run."], ""),
    "routing": (
        "direct",
        ["error", "info"],
        ["error", "info"],
        ["error", "Run. Run."],
        ["error", "Run. Run."],
        "error:",
    ),
    "topics": (
        "topic",
        ["*.error"],
        ["*.error"],
        ["kern.error", "Run. Run."],
        ["kern.error", "Run. Run."],
        "kern.error:",
    ),
    "headers": (
        "headers",
        ["--match", "any", "format=pdf", "type=log"],
        ["any", "format=pdf", "type=log"],
        ["-H", "format=pdf", "Run. Run."],
        ["Run. Run.", "format=pdf"],
        "",
    ),
}


@pytest.mark.parametrize("tutorial", LOGS)
@pytest.mark.sampled(2)
def test_plain_scripts_exchange_logs_with_emit_log_and_receive_log(room: Room, tutorial: str) -> None:
    """For each tutorial about logs, `tutorial show --plain` prints a script that can send and receive log messages.
    Both `receive-log` and the script print the log messages that `emit-log` sends and those that the script sends.
    """
    kind, takes, script_takes, emits, script_emits, key = LOGS[tutorial]
    room.printed(tutorial)

    receiver = room.start_mqtool("receive-log", kind, *takes, "-c", "2")
    scripts_receiver = room.start_script("receive", *script_takes)
    room.mqtool("emit-log", kind, *emits)
    assert room.script("emit", *script_emits).stdout == f" [x] Sent {key}Run. Run.\n"
    received = receiver.wait()
    scripts_receiver.wait_for_stdout(f" [x] {key}Run. Run.\n [x] {key}Run. Run.\n")
    ends_well(scripts_receiver)

    assert received.stdout == f" [x] {key}Run. Run.\n" * 2
    assert received.stderr == WAITING_FOR_LOGS
    assert scripts_receiver.stdout == WAITING_FOR_LOGS + received.stdout


def test_the_topics_script_receives_only_log_messages_that_match_its_patterns(room: Room) -> None:
    """The script that `tutorial show topics --plain` prints receives only log messages whose routing keys match the
    script's binding keys.
    """
    room.printed("topics")
    receiver = room.start_script("receive", "kern.*", "*.critical")
    for key in ("cron.info", "kern.a.b", "kern.critical"):
        room.mqtool("emit-log", "topic", key, "x")
    ends_well(receiver.wait_for_stdout("kern.critical"))
    assert receiver.stdout == f"{WAITING_FOR_LOGS} [x] kern.critical:x\n"


def test_the_script_of_rpc_and_mqtools_rpc_commands_answer_each_other(room: Room) -> None:
    """`tutorial show rpc --plain` prints a script with a server and a client. The script's server answers `rpc-client`,
    and replies to an invalid request with an error. `rpc-server` answers the script's client.
    """
    room.printed("rpc")
    server = room.start_script("server")
    assert room.mqtool("rpc-client", "30").stdout == " [.] Got 832040\n"
    refused = room.shell.run("mqtool", "rpc-client", "--text", "ten")
    assert refused.code == 65
    assert "ten" in refused.stderr
    ends_well(server)

    server = room.start_mqtool("rpc-server", "-c", "1")
    assert room.script("client", "10").stdout == " [x] Requesting fib(10)\n [.] Got 55\n"
    assert server.wait().stdout == " [.] fib(10)\n"


def test_the_script_of_publisher_confirms_prints_the_same_lines_as_the_command(room: Room) -> None:
    """The script that `tutorial show publisher-confirms --plain` prints has the same output as `publisher-confirms
    all`, apart from the times.
    """
    room.printed("publisher-confirms")

    def ways(result: Result) -> list[str]:
        return [line.rpartition(" in ")[0] for line in result.stdout.splitlines()]

    assert ways(room.script("500")) == ways(room.mqtool("publisher-confirms", "all", "-c", "500"))


def test_the_script_of_delayed_messages_exchanges_messages_with_mqtool(room: Room) -> None:
    """`tutorial show delayed-messages --plain` prints a script that receives the messages of `send-delayed`.
    `receive-delayed` receives the script's messages in the order in which the messages are due.
    """
    room.printed("delayed-messages")
    room.script("send", "4000", "second")
    assert room.script("send", "300", "first").stdout == " [x] Sent 'first'\n"
    received = room.mqtool("receive-delayed", "-c", "2", "-F", "%b")
    assert received.stdout == "first\nsecond\n"

    scripts_receiver = room.start_script("receive")
    room.mqtool("send-delayed", "--delay", "300ms", "later")
    ends_well(scripts_receiver.wait_for_stdout("later"))
    assert scripts_receiver.stdout == f"{WAITING} [x] Received later\n"


@pytest.fixture
def streams(room: Room, broker: TestBroker) -> Room:
    """A room with a port for streams."""
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    return room


def test_the_script_of_streams_exchanges_messages_with_send_stream_and_receive_stream(streams: Room) -> None:
    """`tutorial show stream-hello-world --plain` prints a script that reads its own messages and those of
    `send-stream`. `receive-stream` reads the same messages.
    """
    streams.printed("stream-hello-world")
    assert streams.script("send").stdout == " [x] Hello, World! message sent\n"
    reader = streams.start_script("receive").wait_for_stdout("Hello, World!")
    streams.mqtool("send-stream", "Good", "morning!")
    # Before Python 3.12, a Ctrl-C just as the broker answers a request of rstream is lost: wait for one more message.
    ends_well(reader.wait_for_stdout("Good morning!"))
    said, *lines = reader.stdout.splitlines(keepends=True)
    assert said == "Press control + C to close\n"
    assert streams.mqtool("receive-stream", "-c", "2").stdout == "".join(lines)


def test_the_script_of_offset_tracking_and_mqtool_share_stored_offsets(streams: Room) -> None:
    """The script that `tutorial show stream-offset-tracking --plain` prints resumes where `offset receive` stopped,
    because the script and mqtool store their offset under the same name.
    """
    streams.printed("stream-offset-tracking")
    streams.script("send")
    assert "Done consuming first_offset: 0 last_offset 99 \n" in streams.mqtool("offset", "receive").stdout
    streams.mqtool("offset", "send")
    received = streams.script("receive").stdout.splitlines()
    assert received[:2] == ["Started consuming: Press control +C to close", "First message received"]
    first, last = (int(word) for word in received[2].split() if word.isdecimal())
    assert (first >= 100, last - first) == (True, 99)


@pytest.mark.parametrize("tutorial", pages.NAMES)
def test_a_plain_script_imports_only_one_library(tutorial: str) -> None:
    """Each script that `tutorial show --plain` prints imports its client library, modules of Python's standard library,
    and nothing else.
    """
    nodes = list(ast.walk(ast.parse(pages.page(tutorial).plain)))
    modules = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) == {pages.page(tutorial).library}
