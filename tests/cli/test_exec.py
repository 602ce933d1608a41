"""Programs of `worker` and `rpc-server`: what a program is given, and what its exit status means."""

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.message import Message
from mqtool.topology import Queue
from mqtool.tutorials import rpc
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.processes import children_of, is_alive


@on_any_broker
def test_a_program_gets_the_body_on_stdin_and_the_rest_in_its_environment(shell: Shell) -> None:
    """`worker --exec` passes the body to its program on stdin, and properties, headers and the number of the attempt in
    MQ_* environment variables. `worker` fills in placeholders in the command, such as {routing_key}, without a shell.
    """
    shell.run("mqtool", "new-task", "-H", "tenant-id=a b", "-H", "n:=[1,2]", "--property", "message-id=m1", "ünï;$x")
    result = shell.run(
        "mqtool", "worker", "-c", "1", "--exec",
        "sh -c 'cat; echo; env | grep ^MQ_ | sort; echo \"$1\"' - '{routing_key};{attempt}'",
    )  # fmt: skip
    assert result.stdout.splitlines() == [
        "ünï;$x", "MQ_ATTEMPT=1", "MQ_DELIVERY_MODE=2", "MQ_EXCHANGE=", "MQ_HEADER_N=[1,2]", "MQ_HEADER_TENANT_ID=a b",
        "MQ_MESSAGE_ID=m1", "MQ_ORIGINAL_EXCHANGE=", "MQ_ORIGINAL_ROUTING_KEY=task_queue",
        "MQ_QUEUE=task_queue", "MQ_REDELIVERED=0", "MQ_ROUTING_KEY=task_queue", "task_queue;1",
    ]  # fmt: skip
    assert "1 done, 0 retries, 0 dead" in result.stderr


@on_any_broker
@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0"])
def test_rpc_server_answers_with_an_error_if_the_reply_is_too_large(shell: Shell, protocol: str) -> None:
    """If a program's reply is larger than the broker's max_message_size, `rpc-server --exec` replies with an error
    that names the limit, and continues with the next request.
    """
    with EmbeddedBroker(like="4.3") as broker:
        shell.environment["MQTOOL_URL"] = broker.url
        program = 'read -r x; [ "$x" = small ] || exec head -c 16777217 /dev/zero; echo "$x"'
        options = ("--protocol", protocol, "--shell", "--exec", program)
        server = shell.start("mqtool", "rpc-server", *options).wait_until_ready()
        refused = shell.run("mqtool", "rpc-client", "--text", "large", "--timeout", "30s")
        assert "bytes long; the broker takes up to 16,777,216" in refused.stdout + refused.stderr
        assert shell.run("mqtool", "rpc-client", "--text", "small", "--raw", "--timeout", "30s").stdout == "small\n"
        server.interrupt()
        ended = server.wait()
        assert (ended.code, "answered with an error: " in ended.stderr) == (0, True)
        with Connection(parse_addresses(broker.url)) as connection:
            assert connection.channel().depth_of("rpc_queue") == 0


def lose_replies(shell: Shell, broker: TestBroker, prefix: str = "") -> None:
    """Check what `rpc-server` does with replies to a missing and a full queue. A prefix turns names into addresses."""
    rejects = ("--queue-type", "classic", "--max-length", "1", "--argument", "x-overflow=reject-publish")
    shell.run("mqtool", "queue", "declare", "full", *rejects)
    assert shell.run("mqtool", "send", "-q", "full", "first").code == 0
    server = shell.start("mqtool", "rpc-server").wait_until_ready()
    says = {"gone": "lost a reply: its queue 'gone' does not exist", "full": "lost a reply to queue"}
    for queue, line in says.items():
        properties = {"reply_to": f"{prefix}{queue}", "correlation_id": "1"}
        request = json.dumps({"body": "5", "properties": properties})
        shell.run("mqtool", "send", "-q", "rpc_queue", "--json", stdin=(request + "\n") * 2)
        server.wait_for_stderr(line)
    assert shell.run("mqtool", "rpc-client", "10", "--raw", "--timeout", "20s").stdout == "55\n"
    server.interrupt()
    ended = server.wait()
    assert (ended.code, ended.stderr.count("lost a reply")) == (0, 2), ended.stderr
    assert depth(broker, "rpc_queue") == 0


def test_rpc_server_says_that_a_reply_is_lost(shell: Shell, broker: TestBroker) -> None:
    """If the queue for a reply does not exist or is full, `rpc-server` says that the reply is lost. It nevertheless
    acknowledges the request, and continues with the next one.
    """
    lose_replies(shell, broker)


@on_any_broker
@pytest.mark.parametrize("requests", [("large", "small"), ("small", "large")], ids="{0[0]} first".format)
def test_rpc_server_answers_as_many_requests_as_count_says_even_if_a_reply_is_too_large(
    shell: Shell, requests: tuple[str, str]
) -> None:
    """If the reply to a request is larger than the broker's max_message_size, the broker closes the channel, and then
    redelivers the request. `rpc-server` answers the redelivered request with an error, and counts the request only
    once. With --count 2, it therefore answers two requests and exits with 0, whichever of the two replies is too large.
    """
    with EmbeddedBroker(like="4.3") as broker:
        shell.environment["MQTOOL_URL"] = broker.url
        program = 'read -r x; [ "$x" = small ] || exec head -c 16777217 /dev/zero; echo "$x"'
        server = shell.start("mqtool", "rpc-server", "-c", "2", "--shell", "--exec", program).wait_until_ready()
        answered = shell.run("mqtool", "rpc-client", "--text", *requests, "--raw", "--timeout", "30s")
        assert (answered.stdout, answered.code) == ("small\n", 3)
        assert "the server refused 1 of 2 requests" in answered.stderr
        assert server.wait().code == 0
        with Connection(parse_addresses(broker.url)) as connection:
            assert connection.channel().depth_of("rpc_queue") == 0


@on_any_broker
def test_a_large_body_is_passed_whole_and_need_not_be_read(shell: Shell) -> None:
    """`worker --exec` passes the whole of a body of 1 MB to the program's stdin. If the program exits with 0 without
    reading the body, the message is still acknowledged.
    """
    for _ in range(2):
        shell.run("mqtool", "new-task", stdin=b"x" * 1_000_000)
    assert shell.run("mqtool", "worker", "-c", "1", "--exec", "wc -c").stdout.strip() == "1000000"
    assert shell.run("mqtool", "worker", "-c", "1", "--exec", "true").code == 0


def test_quick_programs_run_while_a_slow_one_is_running(shell: Shell, broker: TestBroker) -> None:
    """With `worker --concurrency 3`, quick programs for all other messages run and end while a slow program for the
    first message is still running. Once the slow program has ended, too, no message is left in the queue.
    """
    shell.run("mqtool", "new-task", "-l", stdin="slow\n" + "quick\n" * 5)
    worker = shell.start(
        "mqtool", "worker", "--concurrency", "3", "--shell", "--exec",
        "read -r x; if [ $x = slow ]; then until [ -e go ]; do sleep 0.05; done; fi; echo $x",
    )  # fmt: skip
    wait_until(lambda: worker.stdout.count("quick") == 5, "the quick programs")
    assert "slow" not in worker.stdout
    shell.run("touch", "go")
    worker.wait_for_stdout("slow").interrupt()
    assert worker.wait().code == 0
    assert depth(broker, "task_queue") == 0


@on_any_broker
def test_worker_with_concurrent_programs_handles_exactly_as_many_messages_as_count_says(shell: Shell) -> None:
    """`worker -c 10 --concurrency 4` handles exactly 10 of 20 messages; the others stay in the queue."""
    shell.run("mqtool", "new-task", "-l", stdin="".join(f"{number}\n" for number in range(20)))
    result = shell.run("mqtool", "worker", "-c", "10", "--concurrency", "4", "--shell", "--exec", 'echo "$(cat)"')
    rest = shell.run("mqtool", "receive", "-q", "task_queue", "--raw", "--idle-timeout", IDLE)
    done, left = result.stdout.split(), rest.stdout.split()
    assert (len(done), len(left)) == (10, 10)
    assert sorted(done + left, key=int) == [str(number) for number in range(20)]


@on_any_broker
@pytest.mark.parametrize("status", [126, 127], ids="exit status {}".format)
@pytest.mark.sampled(1)
def test_worker_exits_and_keeps_the_message_if_the_program_cannot_be_run(shell: Shell, status: int) -> None:
    """If the program that `worker` is to run for each message cannot be run (exit status 126 or 127), `worker` exits
    with 1, and the message stays in the queue for another worker.
    """
    shell.run("mqtool", "new-task", "precious")
    result = shell.run("mqtool", "worker", "--shell", "--exec", f"exit {status}")
    assert result.code == 1
    assert f"the program cannot be run: exit status {status}" in result.stderr
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "--raw").stdout == "precious\n"


@on_any_broker
def test_worker_refuses_an_invalid_program(shell: Shell) -> None:
    """`worker --exec` says what is wrong and exits with 2 if the program does not exist or is not executable, or if
    the command contains an unknown placeholder. It also refuses shell syntax without --shell, and placeholders such
    as {routing_key} with --shell, because the shell would run a placeholder's value as code.
    """
    (shell.directory / "script").touch()
    for options, said in (
        (["--exec", "no-such-program"], "program 'no-such-program' not found"),
        (["--exec", "./script"], "'./script' is not executable"),
        (["--exec", "grep 'a|b' | wc"], "--exec runs no shell, so '|' would be an argument"),
        (["--exec", "echo $MQ_ATTEMPT"], "--exec runs no shell, so '$MQ_ATTEMPT' would be an argument"),
        (["--exec", "echo a-${MQ_QUEUE}"], "--exec runs no shell, so '${MQ_QUEUE}' would be an argument"),
        (["--exec", 'echo "$MQ_QUEUE"'], "--exec runs no shell, so '$MQ_QUEUE' would be an argument"),
        (["--exec", "echo {nosuch}"], "--exec has an unknown placeholder {nosuch}"),
        (["--exec", "echo {routing_key}", "--shell"], "sh would run the value of {routing_key} as code"),
        (["--retries", "3"], "add --exec COMMAND"),
    ):
        result = shell.run("mqtool", "worker", *options)
        assert result.code == 2
        assert said in result.stderr


@on_any_broker
def test_a_timeout_kills_the_program_and_its_children(shell: Shell) -> None:
    """If the program of `worker` runs longer than --timeout allows, `worker` kills the program and the processes that
    the program has started. If no retries are left, the message is dead-lettered.
    """
    shell.run("mqtool", "new-task")
    result = shell.run(
        "mqtool", "worker", "-c", "1", "--timeout", "3s", "--retries", "0", "--shell", "--exec",
        "sleep 1000 & echo $! > child; wait",
    )  # fmt: skip
    assert "timed out after 3 s; dead after 1 attempt, now in task_queue.dlq" in result.stderr
    child = int((shell.directory / "child").read_text())
    wait_until(lambda: not is_alive(child), "the end of the program's child")


@on_any_broker
def test_a_program_is_killed_in_time_even_if_the_stderr_of_worker_is_not_read(shell: Shell) -> None:
    """`worker` kills a program that runs longer than --timeout allows, even if no process reads the stderr of `worker`.
    If `worker` itself is killed with kill -9, its program ends, too.
    """
    os.mkfifo(shell.directory / "log")
    reader = os.open(shell.directory / "log", os.O_RDONLY | os.O_NONBLOCK)
    talk = "echo $$ >> pids; exec yes >&2"
    shell.run("mqtool", "new-task", "-l", stdin="one\ntwo\n")

    def pids() -> list[int]:
        path = shell.directory / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def is_full() -> bool:
        writer = os.open(shell.directory / "log", os.O_WRONLY | os.O_NONBLOCK)
        try:
            return not select.select([], [writer], [], 0)[1]
        finally:
            os.close(writer)

    command = f"exec mqtool worker -c 2 --timeout 1s --retries 0 --shell --exec '{talk}' 2> log"
    worker = shell.start("bash", "-c", command, ready=False)
    wait_until(lambda: pids() and not is_alive(pids()[0]), "the program to be killed")
    os.close(reader)
    worker.wait()
    shell.run("mqtool", "new-task", "three")
    reader = os.open(shell.directory / "log", os.O_RDONLY | os.O_NONBLOCK)
    before = len(pids())
    worker = shell.start("bash", "-c", command.replace("1s", "1h"), ready=False)
    wait_until(lambda: len(pids()) > before, "the program to start")
    wait_until(is_full, "the pipe to fill up")
    worker.process.kill()
    wait_until(lambda: not is_alive(pids()[-1]), "the end of the program")
    os.close(reader)


@on_any_broker
def test_rpc_client_raw_prints_each_reply_on_its_own_line(shell: Shell) -> None:
    """`rpc-client --raw` prints each reply on a line of its own, whether or not the output of the server's program ends
    with a newline.
    """
    server = shell.start("mqtool", "rpc-server", "--exec", "tr a-z A-Z", "-c", "3").wait_until_ready()
    assert shell.run("mqtool", "rpc-client", "--raw", "--text", "one", "two", "three\n").stdout == "ONE\nTWO\nTHREE\n"
    assert server.wait().code == 0


@contextlib.contextmanager
def serving(broker: TestBroker, replies: Mapping[str, Message]) -> Iterator[None]:
    """Run an RPC server that answers each request to the queue `requests` with the reply for its body."""
    with Connection(parse_addresses(broker.url)) as connection, ThreadPoolExecutor() as pool:
        channel = connection.channel()
        served = rpc.serve(channel, Queue("requests", durable=True), lambda request: replies[request.text])
        server = pool.submit(lambda: sum(1 for _ in served))
        try:
            yield
        finally:
            channel.stop()
            server.result(30)


def ended(status: object, **headers: str) -> Message:
    return Message(b"", properties={"headers": {"exit-status": status, **headers}})


@on_any_broker
def test_rpc_client_reports_an_exit_status_that_is_not_an_integer_from_0_to_255(
    shell: Shell, broker: TestBroker
) -> None:
    """`rpc-server --exec` puts the exit status of its program into the reply. If this status is not an integer from 0
    to 255, `rpc-client` says that it is invalid and exits with 1. If `rpc-client` sends several requests, it counts
    this reply as a failure. With --dialect, it exits with 1 without an error message.
    """
    long = "x" * 300
    invalid = {"true": True, "false": False, "256": 256, "-1": -1, '"7"': "7", "null": None, f'"{long}"': long}
    with serving(broker, {shown: ended(status) for shown, status in invalid.items()} | {"fine": ended(0)}):
        ask = ("mqtool", "rpc-client", "-q", "requests", "--timeout", "20s")
        for shown in invalid:
            asked = shell.run(*ask, "--", shown)
            rest = "… (302 bytes)" if len(shown) > 200 else ""
            assert asked.stderr.endswith(f"mqtool: the exit status in the reply is invalid: {shown[:200]}{rest}\n")
            assert asked.code == 1
        several = shell.run(*ask, "fine", "true")
        assert "warning: the exit status in the reply is invalid: true\n" in several.stderr
        assert several.stderr.endswith("mqtool: the server's program failed for 1 of 2 requests\n")
        assert several.code == 1
        alike = shell.run(*ask, "false", "--dialect", "python")
        assert (alike.stdout.splitlines()[-1], alike.stderr, alike.code) == (" [.] Got ", "", 1)


@on_any_broker
def test_rpc_client_prints_an_excerpt_of_a_long_error_and_the_end_of_a_long_stderr(
    shell: Shell, broker: TestBroker
) -> None:
    """`rpc-client` prints at most the first 200 characters of an error from the server, and at most the last 5,000
    characters and the last 100 lines of the stderr of the server's program. If it leaves something out, it also
    prints the total size. If the error is empty, it says that the server gave no reason.
    """
    lines = "".join(f"{number}\n" for number in range(1000))
    replies = {
        "long": Message(b"e" * 1000, properties={"type": "error"}),
        "empty": Message(b"\n", properties={"type": "error"}),
        "lines": ended(3, stderr=lines),
        "line": ended(3, stderr="a" * 5000 + "\n"),
        "all": ended(3, stderr="a" * 4999 + "\n"),
    }
    with serving(broker, replies):

        def said(request: str) -> list[str]:
            asked = shell.run("mqtool", "rpc-client", "-q", "requests", "--timeout", "20s", request)
            return asked.stderr.replace("the server's program printed on stderr: ", "").splitlines()[1:-1]

        assert said("long") == [f"warning: the server answered with an error: {'e' * 200}… (1,000 bytes)"]
        assert said("empty") == ["warning: the server answered with an error, but gave no reason"]
        assert said("lines") == ["… (3,890 characters)", *map(str, range(900, 1000))]
        assert said("line") == ["… (5,001 characters)", "a" * 4999]
        assert said("all") == ["a" * 4999]


@on_any_broker
def test_an_rpc_program_that_prints_too_much_is_killed(shell: Shell) -> None:
    """If a program prints more than `rpc-server --max-output` allows, the server kills this program and continues, and
    `rpc-client` exits with 65.
    """
    program = 'read body; [ "$body" = yes ] && exec yes; head -c $body /dev/zero'
    options = ("--shell", "--exec", program, "--max-output", "1MiB", "-c", "3")
    server = shell.start("mqtool", "rpc-server", *options).wait_until_ready()
    refused = shell.run("mqtool", "rpc-client", "--text", "yes")
    assert "the program printed more than 1,048,576 bytes" in refused.stderr
    assert refused.code == 65
    assert len(shell.run("mqtool", "rpc-client", "--raw", str(1 << 20)).stdout) == (1 << 20) + len("\n")
    assert shell.run("mqtool", "rpc-client", str((1 << 20) + 1)).code == 65
    assert server.wait().code == 0


@on_any_broker
def test_a_background_process_does_not_delay_the_acknowledgement(shell: Shell) -> None:
    """`worker` acknowledges a message once the message's program has ended, even if a background process of this
    program is still writing to stderr.
    """
    shell.run("mqtool", "new-task")
    worker = shell.run("mqtool", "worker", "-c", "1", "--shell", "--exec", "yes >&2 &")
    assert "1 done" in worker.stderr


@on_any_broker
def test_worker_forwards_all_of_a_programs_stderr(shell: Shell) -> None:
    """`worker` forwards each line of its program's stderr to its own stderr, even if the process that reads the output
    of `worker` is slow.
    """
    shell.run("mqtool", "new-task")
    command = "mqtool worker -c 1 --shell --exec 'seq 40000 >&2' 2>&1 >/dev/null | (sleep 1; cat) | grep -c '^[0-9]*$'"
    assert shell.run("bash", "-c", command).stdout == "40000\n"


def test_earlier_messages_are_acknowledged_while_a_slow_program_runs(shell: Shell, broker: TestBroker) -> None:
    """`worker` acknowledges each message when the program for this message ends. While a slow program runs for one
    message, all messages that were delivered earlier are already acknowledged.
    """
    shell.run("mqtool", "new-task", "-l", stdin="quick\n" * 150 + "slow\n" + "quick\n" * 20)
    program = "read body; echo $body; if [ $body = slow ]; then while ! [ -e go ]; do sleep 0.1; done; fi"
    worker = shell.start("mqtool", "worker", "--shell", "--exec", program).wait_until_ready()

    def messages() -> object:
        queue = broker.api("GET", f"queues/{broker.vhost}/task_queue")
        assert isinstance(queue, dict)
        return queue.get("messages")  # statistics come late

    worker.wait_for_stdout("slow")
    wait_until(lambda: messages() == 21, "the acknowledgement of all messages before the slow one")
    (shell.directory / "go").touch()
    wait_until(lambda: worker.stdout.count("quick") == 170, "the other quick programs")
    result = worker.interrupt().wait()
    assert "171 done" in result.stderr
    wait_until(lambda: messages() == 0, "the acknowledgement of all messages")


@on_any_broker
def test_quick_programs_run_beside_slow_ones(shell: Shell, broker: TestBroker) -> None:
    """With `worker --concurrency 4`, even while three slow programs are running at the same time, quick programs for
    all other messages run and end.
    """
    shell.run("mqtool", "new-task", "-l", stdin="quick\n" * 150 + "slow\n" * 3 + "quick\n" * 40)
    program = "read body; if [ $body = slow ]; then while ! [ -e go ]; do sleep 0.1; done; fi; echo $body"
    options = ("--concurrency", "4", "--shell", "--exec", program)
    worker = shell.start("mqtool", "worker", *options).wait_until_ready()
    wait_until(lambda: worker.stdout.count("quick") == 190, "the quick programs")
    assert "slow" not in worker.stdout
    (shell.directory / "go").touch()
    wait_until(lambda: worker.stdout.count("slow") == 3, "the slow programs")
    assert "193 done" in worker.interrupt().wait().stderr
    assert depth(broker, "task_queue") == 0


@on_any_broker
@pytest.mark.parametrize(
    ("options", "left"), [((), 4), (("-c", "6"), 4), (("--prefetch", "5"), 1)], ids=["no option", "count", "prefetch"]
)
def test_worker_prefetches_as_many_messages_as_concurrency_or_prefetch_says(
    shell: Shell, broker: TestBroker, options: tuple[str, ...], left: int
) -> None:
    """With --concurrency N, `worker` prefetches N messages, even if --count is larger. If --prefetch M is also given,
    it prefetches M messages instead. The other messages stay in the queue for other workers.
    """
    shell.run("mqtool", "new-task", "-l", stdin="task\n" * 6)
    program = "echo started; while ! [ -e go ]; do sleep 0.1; done"
    worker = shell.start("mqtool", "worker", "--concurrency", "2", *options, "--shell", "--exec", program)
    wait_until(lambda: worker.stdout.count("started") == 2, "two programs")
    wait_until(lambda: depth(broker, "task_queue") == left, f"{left} messages in the queue")
    (shell.directory / "go").touch()
    wait_until(lambda: worker.stdout.count("started") == 6, "the other programs")
    assert "6 done" in (worker if "-c" in options else worker.interrupt()).wait().stderr
    assert depth(broker, "task_queue") == 0


def test_worker_keeps_the_remaining_messages_if_a_program_exits_with_127(shell: Shell) -> None:
    """If a program exits with 127, which means that a command was not found, `worker` starts no more programs. It
    acknowledges only the messages that had already been handled, and the others stay in the queue.
    """
    shell.run("mqtool", "new-task", "-l", stdin="good\n" * 70 + "bad\n" + "good\n" * 9)
    program = "read body; echo $body; if [ $body = bad ]; then exit 127; fi"
    result = shell.run("mqtool", "worker", "--shell", "--exec", program)
    assert result.code == 1
    assert result.stdout.split() == ["good"] * 70 + ["bad"]
    assert "70 done" in result.stderr
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "10", "--raw").stdout.split().count("good") == 9


def test_the_count_of_worker_can_be_larger_than_its_prefetch(shell: Shell, broker: TestBroker) -> None:
    """Even if --count is larger than the prefetch, `worker -c 150` handles exactly 150 of 170 messages and leaves the
    others in the queue.
    """
    shell.run("mqtool", "new-task", "-l", stdin="".join(f"{number}\n" for number in range(170)))
    worked = shell.run("mqtool", "worker", "-c", "150", "--shell", "--exec", "cat; echo")
    assert len(worked.stdout.split()) == 150
    left = shell.run("mqtool", "receive", "-q", "task_queue", "-c", "20", "--raw")
    assert sorted(worked.stdout.split() + left.stdout.split(), key=int) == [str(number) for number in range(170)]


def test_the_program_of_a_killed_worker_ends(shell: Shell) -> None:
    """After kill -9 of `worker`, its program ends as well, and the message is redelivered to another worker."""
    shell.run("mqtool", "new-task")
    worker = shell.start("mqtool", "worker", "--shell", "--exec", "echo $$ > pid; exec sleep 1000").wait_until_ready()
    wait_until(
        lambda: (shell.directory / "pid").exists() and (shell.directory / "pid").read_text(), "the program to start"
    )
    worker.process.kill()
    program = int((shell.directory / "pid").read_text())
    wait_until(lambda: not is_alive(program), "the end of the program")
    again = shell.run("mqtool", "worker", "-c", "1", "--shell", "--exec", "echo $MQ_REDELIVERED")
    assert again.stdout == "1\n"


def test_worker_lets_running_programs_finish_after_sigterm(shell: Shell) -> None:
    """After SIGTERM, `worker` lets the running programs finish and acknowledges their messages. The other messages stay
    in the queue.
    """
    for body in "abcd":
        shell.run("mqtool", "send", "-q", "jobs", body)
    worker = shell.start(
        "mqtool",
        "worker",
        "--declare",
        "-q",
        "jobs",
        "--concurrency",
        "2",
        "--shell",
        "--exec",
        'echo "$(cat)"; until [ -e go ]; do sleep 0.1; done; echo end',
    ).wait_until_ready()
    wait_until(lambda: {"a", "b"} <= set(worker.stdout.split()), "two programs to run")
    worker.process.send_signal(signal.SIGTERM)
    (shell.directory / "go").touch()
    result = worker.wait()

    assert result.code == 0
    assert result.stdout.count("end") == 2
    assert "2 done, 0 retries, 0 dead" in result.stderr
    left = shell.run("mqtool", "receive", "-q", "jobs", "-c", "2", "--raw").stdout.split()
    assert left == ["c", "d"]


@on_any_broker
def test_worker_stops_when_the_reader_of_its_output_has_exited(shell: Shell) -> None:
    """In `worker --exec … | head -1`, `worker` exits with 141, and the messages whose output could not be printed stay
    in the queue.
    """
    shell.run("sh", "-c", "seq 5 | mqtool send -l -q jobs")
    result = shell.run("bash", "-c", "mqtool worker -q jobs --shell --exec 'cat; echo; sleep 0.3' | head -1; "
                       "echo ${PIPESTATUS[0]}")  # fmt: skip
    assert result.stdout == "1\n141\n"
    done = int(result.stderr.splitlines()[-1].split()[0])
    left = shell.run("mqtool", "receive", "-q", "jobs", "-c", str(5 - done), "--raw").stdout.split()
    assert left == [str(number) for number in range(1 + done, 6)]


@on_any_broker
def test_worker_exits_and_keeps_the_message_if_its_runner_is_killed(shell: Shell) -> None:
    """`worker` starts programs from a child process, its runner. If the runner is killed, `worker` exits with 1 and the
    message stays in the queue.
    """
    worker = shell.start("mqtool", "worker", "--declare", "-q", "jobs", "--exec", "true").wait_until_ready()
    pid = worker.process.pid
    os.kill(children_of(pid)[0], signal.SIGKILL)
    shell.run("mqtool", "send", "-q", "jobs", "kept")
    result = worker.wait()
    assert result.code == 1
    assert "the process that runs programs was killed" in result.stderr
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "1", "--raw").stdout == "kept\n"


@large
def test_after_a_killed_runner_at_most_one_message_is_handled_twice(shell: Shell) -> None:
    """`worker` starts programs from a child process, its runner. If the runner is killed, `worker` exits with 1,
    another worker handles the remaining messages, and at most one message is handled twice.
    """
    shell.run("sh", "-c", "seq 200 | mqtool send -l -q jobs")
    program = ("--shell", "--exec", 'echo "$(cat)" >> done; sleep 0.01', "--concurrency", "2")
    worker = shell.start("mqtool", "worker", "--declare", "-q", "jobs", *program).wait_until_ready()
    finished = shell.directory / "done"
    wait_until(lambda: finished.exists() and len(finished.read_text().split()) > 20, "some programs")
    pid = worker.process.pid
    os.kill(children_of(pid)[0], signal.SIGKILL)
    assert worker.wait().code == 1
    other = shell.start("mqtool", "worker", "-q", "jobs", *program)
    wait_until(lambda: len(set(finished.read_text().split())) == 200, "the other programs")
    assert other.interrupt().wait().code == 0
    lines = finished.read_text().split()
    assert sorted(set(lines), key=int) == [str(number) for number in range(1, 201)]
    assert len(lines) <= 200 + 1


def test_heartbeats_continue_while_a_program_runs(shell: Shell, broker: TestBroker) -> None:
    """While a program runs longer than several heartbeat intervals, the connection of `worker` stays open, and the
    message is acknowledged.
    """
    shell.environment["MQTOOL_URL"] = f"{broker.url}?heartbeat=2"
    shell.run("mqtool", "new-task")
    result = shell.run("mqtool", "worker", "-c", "1", "--exec", "sleep 7")
    assert (result.code, "1 done" in result.stderr) == (0, True)
    assert "lost the connection" not in result.stderr
    assert depth(broker, "task_queue") == 0


def test_a_failing_message_is_retried_with_backoff_and_then_dead_lettered(shell: Shell, broker: TestBroker) -> None:
    """If the program of `worker` fails for a message, `worker` retries the message up to --retries times, after delays
    that double each time. Then `worker` dead-letters the message, with headers that give the reason, the number of
    attempts and the queue.
    """
    shell.run("mqtool", "send", "-q", "jobs", "--property", "message-id=m1", "-H", "k=v", "-H", "CC:=[]", "bad")
    result = shell.run(
        "mqtool", "worker", "-q", "jobs", "-c", "3", "--retries", "2", "--backoff", "1500ms", "--shell", "--exec",
        "date +%s%3N; echo tried $MQ_ATTEMPT, key $MQ_ROUTING_KEY >&2; exit 1",
    )  # fmt: skip
    times = [int(line) for line in result.stdout.split()]
    assert len(times) == 3
    for (before, after), promised in zip(pairwise(times), (1500, 3000), strict=True):
        assert promised <= after - before + 5, "no retry comes early"
    for name, promised in (("jobs.wait.1s500ms", 1500), ("jobs.wait.3s", 3000)):
        queue = broker.api("GET", f"queues/{broker.vhost}/{name}")
        assert isinstance(queue, dict)
        assert queue["arguments"]["x-message-ttl"] == promised, "the TTL is the delay"
    assert [line for line in result.stderr.splitlines() if line.startswith("tried")] == [
        f"tried {attempt}, key jobs" for attempt in (1, 2, 3)
    ]

    dead = json.loads(shell.run("mqtool", "receive", "-q", "jobs.dlq", "-c", "1", "--json", "--durable").stdout)

    assert dead["body"] == "bad"
    assert dead["properties"]["message_id"] == "m1"
    headers = dead["headers"]
    assert headers["mqtool-attempts"] == 3
    assert headers["mqtool-reason"] == "retries exhausted"
    assert headers["mqtool-last-error"] == "exit status 1: tried 3, key jobs"
    assert headers["mqtool-queue"] == "jobs"
    assert headers["k"] == "v"


def test_worker_dead_letters_after_exit_status_65_and_retries_after_other_failures(
    shell: Shell, broker: TestBroker
) -> None:
    """If a program exits with 65, which stands for invalid data, `worker` dead-letters the message without a retry.
    After any other failure, `worker` retries the message, and acknowledges it if the second attempt succeeds.
    """
    shell.run("mqtool", "send", "-q", "jobs", "-l", stdin="65\n75\n9\n0\n")
    result = shell.run(
        "mqtool", "worker", "-q", "jobs", "-c", "6", "--backoff", "200ms", "--shell", "--exec",
        'read -r x; [ "$MQ_ATTEMPT" = 2 ] || exit $x',
    )  # fmt: skip
    assert "3 done, 2 retries, 1 dead" in result.stderr
    assert result.code == 3
    assert "1 message failed for good" in result.stderr
    assert (depth(broker, "jobs"), depth(broker, "jobs.dlq")) == (0, 1)


@on_any_broker
def test_worker_exits_with_1_if_its_program_failed_for_all_messages(shell: Shell) -> None:
    """`worker` exits with 1 if its program failed for all messages. It exits with 0 if the program succeeded for at
    least one message, even if another message is still waiting for a retry.
    """
    shell.run("mqtool", "send", "-q", "jobs", "-l", stdin="1\n1\n0\n")
    work = ("mqtool", "worker", "-q", "jobs", "--backoff", "1h", "--shell", "--exec", "read -r x; exit $x")
    retried = shell.run(*work, "-c", "1")
    assert (retried.code, "1 attempt failed, and none succeeded" in retried.stderr) == (1, True)
    assert "will be retried" in retried.stderr
    assert shell.run(*work, "-c", "2").code == 0
    shell.run("mqtool", "send", "-q", "jobs", "1")
    dead = shell.run(*work, "-c", "1", "--retries", "0")
    assert (dead.code, "to see them: mqtool dlq show jobs" in dead.stderr) == (1, True)


def test_a_long_retry_delay_does_not_hold_up_a_short_one(shell: Shell) -> None:
    """A message that waits an hour for its retry does not delay another message of the same queue whose retry is due in
    200 ms.
    """
    shell.run("mqtool", "send", "-q", "jobs", "first")
    first = shell.run("mqtool", "worker", "-q", "jobs", "-c", "1", "--backoff", "1h", "--backoff-max", "2h",
                      "--exec", "false")  # fmt: skip
    assert "retry 1 of 5 in 1h" in first.stderr
    shell.run("mqtool", "send", "-q", "jobs", "second")
    result = shell.run("mqtool", "worker", "-q", "jobs", "-c", "2", "--backoff", "200ms", "--shell", "--exec",
                       'cat; [ "$MQ_ATTEMPT" = 2 ]')  # fmt: skip
    assert result.stdout == "secondsecond"


def test_a_wait_queue_without_a_ttl_gets_no_message(shell: Shell, broker: TestBroker) -> None:
    """To retry a message later, `worker` publishes it to a wait queue with a TTL. If a queue with the name of this wait
    queue already exists, but has no TTL, `worker` exits with 78 and leaves the message in its original queue, because
    the message might never leave the wait queue.
    """
    broker.api("PUT", f"queues/{broker.vhost}/jobs.wait.1s", {"durable": True})
    shell.run("mqtool", "new-task", "-q", "jobs", "one")
    stopped = shell.run("mqtool", "worker", "-q", "jobs", "--exec", "false", "-c", "1")
    assert stopped.code == 78
    assert "messages might never leave jobs.wait.1s" in stopped.stderr
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "1", "--raw").stdout == "one\n"


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-max-length": 0},
        {"x-queue-type": "quorum", "x-max-length-bytes": 0, "x-overflow": "drop-head"},
        {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs"},
        {"x-max-priority": 3, "x-expires": 60_000},
    ],
    ids=["length", "bytes", "ttl", "expires"],
)
def test_worker_dead_letters_nothing_to_a_queue_that_could_lose_messages(
    shell: Shell, broker: TestBroker, arguments: dict[str, object]
) -> None:
    """If the dead-letter queue of `worker` already exists with a TTL, an expiry, or a maximum length beyond which it
    drops messages, dead letters could be lost there. `worker` then exits with 78 instead of dead-lettering a message.
    The message stays in its original queue.
    """
    broker.api("PUT", f"queues/{broker.vhost}/jobs.dlq", {"durable": True, "arguments": arguments})
    shell.run("mqtool", "new-task", "-q", "jobs", "one")
    stopped = shell.run("mqtool", "worker", "-q", "jobs", "--exec", "false", "--retries", "0", "-c", "1")
    assert stopped.code == 78
    assert "so it may not keep its messages" in stopped.stderr
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "1", "--raw").stdout == "one\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"arguments": {"x-queue-type": "quorum", "x-max-length": 9, "x-overflow": "reject-publish"}},
        {"arguments": {"x-queue-mode": "lazy", "x-queue-version": 2, "x-max-priority": 3}},
        {"arguments": {"x-single-active-consumer": True}, "durable": False},
    ],
    ids=["quorum", "lazy", "transient"],
)
def test_a_dead_letter_queue_with_other_arguments_is_used_if_it_drops_no_messages(
    shell: Shell, broker: TestBroker, settings: dict[str, object]
) -> None:
    """If the dead-letter queue of `worker` already exists with another type or other arguments, or is transient,
    `worker` still dead-letters messages to it, and prints one notice about the difference. The queue in this test
    drops no messages: it has no TTL and no expiry, and if it has a maximum length, it rejects further messages.
    """
    broker.api("PUT", f"queues/{broker.vhost}/jobs.dlq", {"durable": True, **settings})
    for _ in range(2):
        shell.run("mqtool", "new-task", "-q", "jobs", "one")
    result = shell.run("mqtool", "worker", "-q", "jobs", "--exec", "false", "--retries", "0", "-c", "2")
    assert "0 done, 0 retries, 2 dead" in result.stderr
    assert result.stderr.count("queue 'jobs.dlq' already exists, and ") == 1
    assert depth(broker, "jobs.dlq") == 2


@on_any_broker
def test_worker_retries_messages_of_a_queue_with_the_longest_name(shell: Shell, broker: TestBroker) -> None:
    """For a queue whose name has 255 bytes, the longest that AMQP allows, `worker` can still retry and dead-letter
    messages, and `dlq redrive` moves the dead letters back.
    """
    queue = "ü" * 126 + "xyz"
    shell.run("mqtool", "send", "-q", queue, "poison")
    result = shell.run("mqtool", "worker", "-q", queue, "-c", "2", "--retries", "1", "--backoff", "100ms", "--exec",
                       "false")  # fmt: skip
    assert "0 done, 1 retry, 1 dead" in result.stderr
    assert "1 moved back" in shell.run("mqtool", "dlq", "redrive", queue, "--yes").stderr
    assert depth(broker, queue) == 1
