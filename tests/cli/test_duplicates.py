"""`--deduplicate`: a message that arrives twice is handled once."""

import json
import signal
from collections.abc import Sequence

import pytest

from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import Result, Shell, wait_until


def _message(message_id: str, body: str = "x") -> str:
    return json.dumps({"body": body, "properties": {"message_id": message_id}}) + "\n"


@on_any_broker
def test_worker_deduplicate_skips_a_message_that_was_handled_before(shell: Shell, broker: TestBroker) -> None:
    """If a message has the same message ID as one that was handled before, even by an earlier run of `worker`,
    `worker --deduplicate` does not handle the message, but acknowledges it and prints a note with the message ID.
    """
    store = ["--deduplicate", "--dedup-store", "store"]
    program = ["--shell", "--exec", "echo did $MQ_MESSAGE_ID"]
    shell.run("mqtool", "new-task", "--json", stdin=_message("a") + _message("b") + _message("a"))
    first = shell.run("mqtool", "worker", *store, *program, "-c", "3")
    assert first.stdout == "did a\ndid b\n"
    assert "message a was done before: acknowledged, not done again" in first.stderr
    assert "2 done, 0 retries, 0 dead, 1 suppressed" in first.stderr

    shell.run("mqtool", "new-task", "--json", stdin=_message("b") + _message("c"))
    assert shell.run("mqtool", "worker", *store, *program, "-c", "2").stdout == "did c\n"
    assert depth(broker, "task_queue") == 0


@on_any_broker
def test_a_message_with_the_same_id_on_another_virtual_host_is_not_a_duplicate(
    shell: Shell, broker: TestBroker
) -> None:
    """`worker --deduplicate` handles a message even if a message with the same message ID was handled on another
    virtual host.
    """
    worker = ("mqtool", "worker", "-c", "1", "--deduplicate", "--dedup-store", "store", "--exec", "echo did it")
    shell.run("mqtool", "new-task", "--json", stdin=_message("a"))
    assert shell.run(*worker).stdout == "did it\n"
    other = f"{broker.vhost}-other"
    broker.api("PUT", f"vhosts/{other}")
    try:
        url = broker.url.rpartition("/")[0] + f"/{other}"
        shell.run("mqtool", "new-task", "--json", "-u", url, stdin=_message("a"))
        assert shell.run(*worker, "-u", url).stdout == "did it\n"
    finally:
        broker.api("DELETE", f"vhosts/{other}")


def test_a_duplicate_of_a_dead_letter_is_skipped_but_a_redriven_dead_letter_is_handled(
    shell: Shell, broker: TestBroker
) -> None:
    """`worker --deduplicate` skips a second copy of a message that it has dead-lettered, but handles a dead letter that
    `dlq redrive` or `move` has moved back.
    """
    worker = ("mqtool", "worker", "-q", "jobs", "--deduplicate", "--dedup-store", "store", "--retries", "0", "--shell")
    shell.run("mqtool", "send", "-q", "jobs", "--json", stdin=_message("a") * 2)
    failing = shell.run(*worker, "-c", "2", "--exec", "exit 1")
    assert "0 done, 0 retries, 1 dead, 1 suppressed" in failing.stderr
    assert "message a was dead-lettered before: acknowledged, not done again" in failing.stderr
    assert depth(broker, "jobs.dlq") == 1

    assert shell.run("mqtool", "dlq", "redrive", "jobs").code == 0
    assert "1 dead" in shell.run(*worker, "-c", "1", "--exec", "exit 1").stderr
    assert shell.run("mqtool", "move", "jobs.dlq", "--to", "jobs").code == 0
    assert "1 done" in shell.run(*worker, "-c", "1", "--exec", "exit 0").stderr


def test_a_redriven_dead_letter_is_not_a_duplicate_even_if_its_headers_had_to_be_dropped(shell: Shell) -> None:
    """`worker` adds headers to a dead letter. If there is no room for them, because the message's own headers are too
    large, `worker` drops the message's own headers. After `dlq redrive`, `worker --deduplicate` still handles this
    message, and does not skip it as a duplicate. This is also true of a message whose publisher has forged the header
    that counts redrives.
    """
    worker = ("mqtool", "worker", "-q", "jobs", "--deduplicate", "--dedup-store", "store", "--retries", "0", "--shell")
    large = {"body": "x", "properties": {"message_id": "large"}, "headers": {"large": "x" * 130_717}}
    forged = {"body": "x", "properties": {"message_id": "forged"}, "headers": {"mqtool-redrives": 2**31 - 2}}
    lines = "".join(f"{json.dumps(each)}\n" for each in (large, forged))
    shell.run("mqtool", "send", "-q", "jobs", "--json", stdin=lines)
    said = ""
    for error in ("no", "0" * 300):
        failing = shell.run(*worker, "-c", "2", "--exec", f"echo {error} >&2; exit 1")
        assert "0 done, 0 retries, 2 dead" in failing.stderr, failing.stderr
        said += failing.stderr
        assert shell.run("mqtool", "dlq", "redrive", "jobs").code == 0
    assert said.count("its headers were dropped") == 1
    assert shell.run(*worker, "-c", "2", "--exec", "echo $MQ_MESSAGE_ID").stdout.split() == ["large", "forged"]


@on_any_broker
def test_the_retry_of_a_failed_message_is_not_skipped_as_a_duplicate(shell: Shell) -> None:
    """`worker --deduplicate` handles the retry of a failed message, which has the same message ID. It also handles a
    message with the same ID that arrives after the time given with --dedup-window.
    """
    shell.run("mqtool", "new-task", "--json", stdin=_message("a"))
    store = ["--deduplicate", "--dedup-store", "store", "--dedup-window", "1ms"]
    failing = shell.run("mqtool", "worker", *store, "-c", "2", "--backoff", "100ms", "--shell", "--exec",
                        "echo $MQ_ATTEMPT; [ $MQ_ATTEMPT = 2 ]")  # fmt: skip
    assert failing.stdout == "1\n2\n"
    shell.run("mqtool", "new-task", "--json", stdin=_message("a"))
    again = shell.run("mqtool", "worker", *store, "-c", "1", "--exec", "echo again")
    assert again.stdout == "again\n"


def test_the_message_of_a_killed_worker_is_handled_once(shell: Shell) -> None:
    """If `worker --deduplicate` is killed with kill -9 while its program runs, the message is not recorded as
    handled: the next worker runs its program for the redelivered message. Of the two runs of the program, only the
    second one is completed.
    """
    shell.run("mqtool", "new-task", "--json", stdin=_message("a"))
    program = ["--deduplicate", "--dedup-store", "store", "--shell", "--exec",
               "touch started; until [ -e go ]; do sleep 0.05; done; echo $MQ_REDELIVERED >> effect"]  # fmt: skip
    worker = shell.start("mqtool", "worker", *program)
    wait_until(lambda: (shell.directory / "started").exists(), "the program")
    worker.process.kill()
    worker.wait()
    (shell.directory / "go").touch()
    shell.run("mqtool", "worker", *program, "-c", "1")
    assert (shell.directory / "effect").read_text() == "1\n"


def _stopped_while_it_waits(
    shell: Shell, broker: TestBroker, command: str, publish: Sequence[str], queue: str, number: int
) -> Result:
    """Stop a command by a signal while another one handles a copy of its message, and check that it exits with 0.

    Args:
        publish: the command that publishes both copies.
    """
    words = ("mqtool", command, "--deduplicate", "--dedup-store", "store", "--shell", "--exec")
    shell.start(*words, "touch started; until [ -e go ]; do sleep 0.05; done").wait_until_ready()
    shell.run("mqtool", *publish, "--json", stdin=_message("a") * 2)
    wait_until(lambda: (shell.directory / "started").exists(), "the program")
    waiting = shell.start(*words, "touch copy")
    wait_until(lambda: depth(broker, queue) == 0, "the second one has the copy")
    waiting.process.send_signal(number)
    result = waiting.wait()
    assert (result.code, "mqtool: " in result.stderr) == (0, False), result.stderr
    assert not (shell.directory / "copy").exists()
    wait_until(lambda: depth(broker, queue) == 1, "the copy is in the queue")
    (shell.directory / "go").touch()
    return result


@on_any_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_worker_deduplicate_can_be_stopped_while_it_waits_for_another_worker(
    shell: Shell, broker: TestBroker, number: int
) -> None:
    """While another worker handles a copy of its message, `worker --deduplicate` waits. If it gets SIGINT or SIGTERM
    during this time, it exits with 0 and does not run its program, and its message stays in the queue.
    """
    result = _stopped_while_it_waits(shell, broker, "worker", ("new-task",), "task_queue", number)
    assert "0 done, 0 retries, 0 dead, 0 suppressed" in result.stderr


@on_any_broker
def test_worker_refuses_a_file_that_is_not_a_deduplication_store(shell: Shell) -> None:
    """If --dedup-store names a file that is not a deduplication store, `worker` prints an error and exits with 2."""
    (shell.directory / "notes").write_text("no database, but long enough to be looked at as if it were one" * 20)
    result = shell.run("mqtool", "worker", "--deduplicate", "--dedup-store", "notes", "--exec", "true")
    assert result.code == 2
    assert "cannot use the store notes" in result.stderr


@on_any_broker
def test_rpc_server_exec_replies_with_the_programs_output(shell: Shell) -> None:
    """`rpc-client` prints the stdout of the program that `rpc-server --exec` runs, reports the program's stderr, and
    exits with the program's exit status. If this status is 127 (not found), the server sends the reply, and then exits
    with 1.
    """
    server = shell.start("mqtool", "rpc-server", "--shell", "--exec", 'read -r x; echo "got $x"; echo hm >&2; exit $x')
    server.wait_until_ready()
    fine = shell.run("mqtool", "rpc-client", "0", "--raw")
    assert (fine.stdout, fine.code) == ("got 0\n", 0)
    bad = shell.run("mqtool", "rpc-client", "7")
    assert (bad.stdout, bad.code) == (" [.] Got got 7\n", 7)
    assert "the server's program printed on stderr: hm" in bad.stderr
    assert bad.stderr.endswith("mqtool: the server's program failed with exit status 7\n")
    broken = shell.run("mqtool", "rpc-client", "127")
    assert broken.code == 127
    assert server.wait().code == 1


@on_any_broker
def test_rpc_client_prints_all_results_if_a_program_fails_for_some_requests(shell: Shell) -> None:
    """If the program of `rpc-server --exec` fails for some requests, `rpc-client` still prints the results of the
    other requests. For a failed request, it prints what the program had printed before it failed, if anything. It
    says for how many requests the program failed, and exits with the exit status of the first failure. With
    --dialect, it also prints empty replies, as the dialect's script does.
    """
    program = 'read -r x; case $x in mute) exit 4;; half) echo half; exit 5;; long) yes; esac; echo "got $x"'
    shell.start("mqtool", "rpc-server", "--shell", "--exec", program, "--max-output", "1KiB").wait_until_ready()
    asked = ("mqtool", "rpc-client", "--text")
    failed = shell.run(*asked, "a", "mute", "half", "b")
    assert (failed.stdout, failed.code) == (" [.] Got got a\n [.] Got half\n [.] Got got b\n", 4)
    assert failed.stderr.endswith("mqtool: the server's program failed for 2 of 4 requests\n")
    refused = shell.run(*asked, "--raw", "half", "long", "mute", "a")
    assert (refused.stdout, refused.code) == ("half\ngot a\n", 5)
    assert refused.stderr.endswith("mqtool: the server's program failed for 2 of 4 requests; the server refused 1\n")
    alike = shell.run(*asked, "mute", "a", "--dialect", "python")
    requesting = " [x] Requesting fib(mute)\n [x] Requesting fib(a)\n"
    assert (alike.stdout, alike.stderr, alike.code) == (f"{requesting} [.] Got \n [.] Got got a\n", "", 4)


@on_any_broker
def test_rpc_server_deduplicate_sends_the_same_reply_to_a_repeated_request(shell: Shell) -> None:
    """If a request arrives twice, `rpc-server --deduplicate` runs the program once, and sends the same reply both
    times.
    """
    request = json.dumps(
        {"body": "x", "properties": {"message_id": "r1", "correlation_id": "c", "reply_to": "answers"}}
    )
    shell.run("mqtool", "receive", "-q", "answers", "--declare", "--idle-timeout", "10ms")
    shell.run("mqtool", "send", "--json", "-q", "rpc_queue", stdin=f"{request}\n{request}\n")
    store = ["--deduplicate", "--dedup-store", "store"]
    result = shell.run("mqtool", "rpc-server", *store, "-c", "2", "--shell", "--exec", "date +%N; printf '\\377'")
    assert "request r1 was answered before" in result.stderr
    answers = shell.run("mqtool", "receive", "-q", "answers", "-c", "2", "--raw").stdout_bytes
    first, second = answers.split(b"\xff\n")[:2]
    assert first == second != b""


@on_any_broker
def test_rpc_server_deduplicate_replies_to_two_clients_with_the_same_message_id(shell: Shell) -> None:
    """If requests from two clients have the same message id, `rpc-server --deduplicate` treats them as different
    requests and replies to both.
    """
    requests = [
        {"body": client, "properties": {"message_id": "r1", "correlation_id": "c", "reply_to": client}}
        for client in ("alice", "bob")
    ]
    for client in ("alice", "bob"):
        shell.run("mqtool", "receive", "-q", client, "--declare", "--idle-timeout", "10ms")
    shell.run(
        "mqtool", "send", "--json", "-q", "rpc_queue", stdin="".join(f"{json.dumps(each)}\n" for each in requests)
    )
    store = ["--deduplicate", "--dedup-store", "store"]
    shell.run("mqtool", "rpc-server", *store, "-c", "2", "--exec", "cat")
    for client in ("alice", "bob"):
        assert shell.run("mqtool", "receive", "-q", client, "-c", "1", "--raw").stdout == f"{client}\n"


@on_any_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_rpc_server_deduplicate_can_be_stopped_while_it_waits_for_another_server(
    shell: Shell, broker: TestBroker, number: int
) -> None:
    """While another server handles a copy of its request, `rpc-server --deduplicate` waits. If it gets SIGINT or
    SIGTERM during this time, it exits with 0 and does not run its program, and its request stays in the queue.
    """
    _stopped_while_it_waits(shell, broker, "rpc-server", ("send", "-q", "rpc_queue"), "rpc_queue", number)
