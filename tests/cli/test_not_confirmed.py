"""Messages that the broker does not confirm are counted and reported, and kept so that a second run can send them."""

import fcntl
import json
import os
import re
import signal
import stat
import termios
from array import array
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import IO

import pytest

from mqtool.address import without_passwords
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.in_process import Vhost
from mqtool.cli.pipe.publishing import FailedMessages
from mqtool.cli.pipe.source import Input
from mqtool.errors import UsageError
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.terminal import closable_terminal, on_terminal


def _bodies(shell: Shell, name: str) -> list[str]:
    return [json.loads(line)["body"] for line in (shell.directory / name).read_text().splitlines()]


def _numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(count))


def test_unroutable_messages_are_kept_and_a_second_run_sends_them(shell: Shell) -> None:
    """`send --mandatory --failed-to FILE` exits with 75 and keeps unroutable messages in FILE. Once the missing queue
    exists, `send --json -f FILE` sends them.
    """
    first = shell.run("mqtool", "send", "-r", "later", "-e", "", "--mandatory", "-l", "--failed-to", "failed",
                      "-H", "k:=1.5", stdin="a\nb\n")  # fmt: skip
    assert first.code == 75
    assert "0 confirmed, 2 returned" in first.stderr
    assert _bodies(shell, "failed") == ["a", "b"]
    assert "2 not confirmed, kept in failed; to send them: mqtool send --json --file=failed\n" in first.stderr

    shell.run("mqtool", "receive", "-q", "later", "--declare", "--idle-timeout", "10ms")
    again = shell.run("mqtool", "send", "--json", "-f", "failed", "--failed-to", "failed")

    assert again.code == 0, again.stderr
    assert (
        shell.run("mqtool", "receive", "-q", "later", "-c", "2", "-F", "%b %h").stdout == 'a {"k":1.5}\nb {"k":1.5}\n'
    )
    assert _bodies(shell, "failed") == []
    assert "replaced" not in again.stderr


@on_any_broker
def test_the_hint_for_an_unroutable_message_says_how_to_publish_to_an_exchange(shell: Shell) -> None:
    """If no queue has the name to which `send` publishes, this may be the name of an exchange. With RabbitMQ's sharding
    plugin, `send -q EXCHANGE` finds a queue of this name, to which nobody can publish.
    """
    returned = shell.run("mqtool", "send", "-e", "", "-r", "shx", "hi")
    assert returned.code == 75
    hint = "'mqtool list queues' shows whether queue 'shx' exists; if it is an exchange: mqtool send --exchange=shx\n"
    assert returned.stderr.endswith(f"NO_ROUTE (312)\nhint: {hint}")


@on_any_broker
def test_send_says_how_many_lines_of_an_earlier_run_it_replaces(shell: Shell) -> None:
    """If FILE already has lines when `send --failed-to FILE` starts, a notice says how many lines were replaced.
    There is no such notice if FILE was empty, or if it was also the input.
    """
    keep = ("mqtool", "send", "-r", "nosuch", "--json", "--failed-to", "failed")
    line = '{"body": "a"}\n'
    said = "replaced failed, which had 2 lines from before\n"
    (shell.directory / "failed").touch()
    assert "replaced" not in shell.run(*keep, stdin=line * 2).stderr
    assert said in shell.run(*keep, stdin=line * 2).stderr
    assert "replaced" not in shell.run(*keep, "-f", "failed").stderr
    assert "replaced" not in shell.script(f"{' '.join(keep)} < failed").stderr


@on_any_broker
@pytest.mark.parametrize("given", ["-f failed", "< failed"])
def test_send_does_not_change_an_invalid_input_that_is_also_the_file_of_failed_messages(
    shell: Shell, given: str
) -> None:
    """If the FILE of `send --failed-to FILE` is also the input, and one of its lines is not a message, `send` exits
    with 65 and leaves FILE unchanged, because it has not read the messages after the invalid line. A notice says that
    FILE is unchanged, and that the messages before the invalid line will be sent again.
    """
    text = '{"body": "a"}\nno JSON\n{"body": "b"}\n'
    (shell.directory / "failed").write_text(text)
    stopped = shell.script(f"mqtool send -r nosuch --json --failed-to failed {given}")
    assert stopped.code == 65
    said = (
        "failed is left unchanged, so that no message after the invalid one is lost; those before it will be sent again"
    )
    assert said in stopped.stderr
    assert (shell.directory / "failed").read_text() == text
    assert not (shell.directory / "failed.unfinished").exists()


@on_any_broker
def test_send_does_not_change_file_unfinished_if_its_failed_messages_are_still_in_the_input(shell: Shell) -> None:
    """If the FILE of `send --failed-to FILE` is also the input and contains an invalid line, `send` leaves FILE
    unchanged. If a killed run has left FILE.unfinished, `send` leaves that file unchanged, too: the messages that could
    not be sent are still in FILE, and would otherwise be sent twice.
    """
    text, earlier = '{"body": "a"}\nno JSON\n', '{"body": "z", "routing_key": "nosuch"}\n'
    (shell.directory / "failed").write_text(text)
    (shell.directory / "failed.unfinished").write_text(earlier)
    stopped = shell.run("mqtool", "send", "-r", "nosuch", "--json", "--failed-to", "failed", "-f", "failed")
    assert stopped.code == 65
    assert "failed.unfinished still has the 1 message of the earlier run\n" in stopped.stderr
    assert (shell.directory / "failed").read_text() == text
    assert (shell.directory / "failed.unfinished").read_text() == earlier


@on_any_broker
def test_send_replaces_a_file_of_failed_messages_that_is_also_stdin_but_not_the_input(shell: Shell) -> None:
    """If the shell redirects stdin from the FILE of `send --failed-to FILE`, but `send` takes its messages from
    another file or from the command line, FILE is not the input. `send` therefore replaces the lines of FILE with the
    failed messages, and a notice says how many lines were replaced.
    """
    (shell.directory / "input").write_text('{"body": "a"}\nno JSON\n')
    for given, code in (("--json -f input", 65), ("a", 75)):
        (shell.directory / "failed").write_text("b\n")
        sent = shell.script(f"mqtool send -r nosuch -e '' --failed-to failed {given} < failed")
        assert (sent.code, "replaced failed, which had 1 line from before\n" in sent.stderr) == (code, True), (
            sent.stderr
        )
        assert _bodies(shell, "failed") == ["a"]


@on_any_broker
@pytest.mark.parametrize("given", ["failed", "other failed", "< failed"])
def test_a_replay_refuses_to_save_failed_messages_to_its_recording(shell: Shell, given: str) -> None:
    """If the FILE of --failed-to is also one of the recordings to replay, `recording replay` exits with 2 and leaves
    FILE unchanged. Otherwise, the messages that --where does not select, for example, would be lost.
    """
    text = '{"body": "a"}\n{"body": "b", "routing_key": "q"}\n'
    for name in ("failed", "other"):
        (shell.directory / name).write_text(text)
    refused = shell.script(f"mqtool recording replay --where routing_key=q --failed-to failed {given}")
    assert (refused.code, "failed is also a recording to replay" in refused.stderr) == (2, True), refused.stderr
    assert (shell.directory / "failed").read_text() == text


@on_any_broker
def test_the_printed_command_to_send_failed_messages_uses_the_same_broker(shell: Shell, broker: TestBroker) -> None:
    """If --url names the broker of `send --failed-to FILE`, the command that `send` prints for sending the messages
    in FILE contains the same --url, but without the password. Without --url, this command would send the messages to
    the default broker.
    """
    shell.environment["MQTOOL_URL"] = "amqp://127.0.0.1:1"
    at = ("--url", broker.url)
    failing = shell.run("mqtool", "send", *at, "-r", "later", "-e", "", "--mandatory", "--failed-to", "failed", "x")
    [again] = re.findall("to send them: (.*)", failing.stderr)
    assert again == f"mqtool send --json --file=failed --url={without_passwords(broker.url)}"
    assert shell.run("mqtool", "queue", "declare", *at, "later").code == 0
    assert shell.script(again).code == 0
    assert shell.run("mqtool", "receive", *at, "-q", "later", "-c", "1", "-F", "%b").stdout == "x\n"


@on_any_broker
def test_send_writes_failed_messages_to_the_target_of_a_symbolic_link(shell: Shell) -> None:
    """If the FILE of `send --failed-to FILE` is a symbolic link, `send` writes the failed messages to the link's
    target, and the link stays.
    """
    (shell.directory / "disk").mkdir()
    (shell.directory / "failed").symlink_to("disk/failed")
    assert shell.run("mqtool", "send", "-r", "nosuch", "-l", "--failed-to", "failed", stdin="a\n").code == 75
    assert (shell.directory / "failed").is_symlink()
    assert _bodies(shell, "disk/failed") == ["a"]


@on_any_broker
def test_send_never_replaces_a_device_or_a_pipe_with_failed_messages(shell: Shell) -> None:
    """If the FILE of `send --failed-to FILE` is a device, a named pipe or a directory, `send` exits with 2, sends
    nothing, and leaves FILE as it is.
    """
    os.mkfifo(shell.directory / "pipe")
    (shell.directory / "null").symlink_to(os.devnull)
    for name in ("pipe", "null", "."):
        refused = shell.run("mqtool", "send", "-q", "q", "-l", "--failed-to", name, stdin="a\n")
        assert (refused.code, "not a regular file" in refused.stderr) == (2, True), refused.stderr
    assert stat.S_ISFIFO((shell.directory / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)  # noqa: PTH116
    assert shell.run("mqtool", "peek", "q").stdout == ""


@on_any_broker
@pytest.mark.parametrize("kind", ["link", "dangling link", "named pipe", "directory"])
def test_send_exits_with_2_if_its_temporary_file_is_a_symbolic_link_a_pipe_or_a_directory(
    shell: Shell, kind: str
) -> None:
    """`send --failed-to FILE` uses FILE.unfinished as its temporary file. If there is a symbolic link, a named pipe
    or a directory of this name, perhaps from another user, `send` exits with 2, sends nothing, and changes neither
    FILE.unfinished nor the target of the link.
    """
    precious, planted = shell.directory / "precious", shell.directory / "failed.unfinished"
    precious.write_text("a line\nno newline at the end")
    match kind:
        case "link":
            planted.symlink_to(precious)
        case "dangling link":
            planted.symlink_to(shell.directory / "new")
        case "named pipe":
            os.mkfifo(planted)
        case _:
            planted.mkdir()
    before = planted.lstat().st_ino
    refused = shell.run("mqtool", "send", "-q", "q", "-l", "--failed-to", "failed", stdin="a\n")
    assert refused.code == 2, refused.stderr
    assert "failed.unfinished is not a regular file of this user\nhint: delete it, or name another file\n" in (
        refused.stderr
    )
    assert precious.read_text() == "a line\nno newline at the end"
    assert planted.lstat().st_ino == before
    assert {each.name for each in shell.directory.iterdir()}.isdisjoint({"failed", "new"})
    assert shell.run("mqtool", "peek", "q").stdout == ""


def test_no_failed_messages_are_added_to_the_file_of_another_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With --failed-to FILE, failed messages are first written to FILE.unfinished. If FILE.unfinished belongs to
    another user, who could read the messages, mqtool reports a usage error, and leaves FILE.unfinished unchanged. If
    there is no FILE.unfinished, FILE is created.
    """
    source = Input(iter(()))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    FailedMessages(tmp_path / "new", lambda message: message, source).finish()
    assert (tmp_path / "new").exists()
    (tmp_path / "failed.unfinished").write_text("theirs")
    with pytest.raises(UsageError, match=r"failed\.unfinished is not a regular file of this user"):
        FailedMessages(tmp_path / "failed", lambda message: message, source)
    assert (tmp_path / "failed.unfinished").read_text() == "theirs"


@on_any_broker
@pytest.mark.parametrize("command", ["send -l", "new-task -l", "emit-log fanout -l", "recording replay"])
def test_the_option_failed_to_refuses_stdout_and_stderr(shell: Shell, command: str) -> None:
    """If the FILE of --failed-to is `-`, or is the file to which the shell redirects stdout or stderr, a publishing
    command exits with 2, and neither creates nor truncates a file.
    """
    for place in ("-", "/dev/stdout", "/dev/stderr", "output"):
        (shell.directory / "output").write_text("earlier\n")
        refused = shell.script(f"mqtool {command} --failed-to {place} < /dev/null >> output 2>&1")
        text = (shell.directory / "output").read_text()
        assert (refused.code, text) == (
            2,
            f"earlier\nmqtool: cannot write {place}: it is stdout or stderr\n"
            "hint: --failed-to needs the name of a file, such as failed.ndjson\n",
        )
    assert not (shell.directory / "-").exists()
    assert not [*shell.directory.glob("*.unfinished")]


@on_any_broker
@pytest.mark.parametrize("where", ["-r nosuch", "-e nosuch --no-declare"], ids=["returned", "refused"])
@large
def test_send_names_the_file_of_failed_messages_if_the_disk_becomes_full(shell: Shell, where: str) -> None:
    """If the disk becomes full, `send --failed-to FILE` exits with 1 and names FILE.unfinished, which contains the
    failed messages written so far. It does so whether the broker returned the messages or closed the channel.
    """
    shell.start_cold()  # a limit is inherited
    full = shell.script(f"ulimit -f 64; seq 5000 | mqtool send {where} -l --quiet --failed-to failed")
    assert full.code == 1, full.stderr
    assert "failed.unfinished: File too large\nhint: it has the first of the messages" in full.stderr
    first, *_ = (shell.directory / "failed.unfinished").read_text().splitlines()
    assert json.loads(first)["body"] == "1"


@on_any_broker
def test_failed_messages_of_a_killed_send_are_kept(shell: Shell) -> None:
    """`send --failed-to FILE` immediately writes each failed message to FILE.unfinished. If `send` is killed, the next
    run with the same FILE keeps these messages and prints their number.
    """
    send = ("mqtool", "send", "-r", "nosuch", "-l", "--failed-to", "failed")
    sender = shell.start(*send, stdin=PIPE)
    sender.write(b"a\nb\n")
    sender.wait_for_stderr("returned: 'b'")
    unfinished = shell.directory / "failed.unfinished"
    wait_until(lambda: unfinished.read_bytes().count(b"\n") == 2, "both lines are in the file")
    sender.process.kill()
    sender.wait()
    with unfinished.open("ab") as file:
        file.write(b'{"body": "cut o')
    again = shell.run(*send, stdin="c\n")
    assert "an earlier run did not finish, and left 2 messages in " in again.stderr
    assert "3 not confirmed, kept in failed" in again.stderr
    assert _bodies(shell, "failed") == ["a", "b", "c"]
    assert not unfinished.exists()


@on_any_broker
def test_the_next_send_discards_a_message_that_a_killed_send_left_incomplete(shell: Shell) -> None:
    """If a killed `send --failed-to FILE` has left only the beginning of a message in FILE.unfinished, the next run
    discards this beginning.
    """
    (shell.directory / "failed.unfinished").write_bytes(b'{"body": "cut o')
    again = shell.run("mqtool", "send", "-r", "nosuch", "-l", "--failed-to", "failed", stdin="c\n")
    assert "an earlier run" not in again.stderr
    assert _bodies(shell, "failed") == ["c"]


@on_any_broker
def test_two_runs_of_send_cannot_keep_failed_messages_in_one_file_at_once(shell: Shell) -> None:
    """While `send --failed-to FILE` is running, a second one with the same FILE exits with 2 and sends nothing. The
    first one keeps its messages in FILE.
    """
    send = ("mqtool", "send", "-r", "nosuch", "-l", "--failed-to", "failed")
    first = shell.start(*send, stdin=PIPE)
    first.write(b"a\n")
    first.wait_for_stderr("returned: 'a'")
    second = shell.run(*send, stdin="b\n")
    assert "another command keeps its failed messages in failed\n" in second.stderr
    assert second.code == 2
    first.process.stdin.close()
    assert first.wait().code == 75
    assert _bodies(shell, "failed") == ["a"]


@on_any_broker
def test_send_exits_with_3_if_messages_of_a_killed_run_are_still_unsent(shell: Shell) -> None:
    """If FILE.unfinished contains messages of a killed run, `send --failed-to FILE` exits with 3, even if the broker
    confirms all messages of the new run. If the input of `send` is FILE.unfinished itself, the command exits with 2 and
    sends nothing.
    """
    unfinished = shell.directory / "failed.unfinished"
    unfinished.write_text('{"body": "earlier"}\n')
    for given in ("--file failed.unfinished", "< failed.unfinished"):
        refused = shell.script(f"mqtool send --json -q q --failed-to failed {given}")
        assert (refused.code, "failed.unfinished is also the input" in refused.stderr) == (2, True), refused.stderr
    assert unfinished.read_text() == '{"body": "earlier"}\n'
    sent = shell.run("mqtool", "send", "-q", "q", "-l", "--failed-to", "failed", stdin="new\n")
    assert (sent.code, "1 message of an earlier run" in sent.stderr) == (3, True), sent.stderr
    assert _bodies(shell, "failed") == ["earlier"]


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("emit-log fanout x", " [x] Sent x, no queue received it\n"),
        ("emit-log direct error x", " [x] Sent error:x, no queue received it\n"),
        ("emit-log headers -H format=pdf x", " [x] Sent x, no queue received it\n"),
        ("send -e amq.direct -r nobody x", " [x] Sent 'x', no queue received it\n"),
        ("emit-log topic a.b --quiet x", ""),
        ("emit-log fanout x -H x-delay:=5000", " [x] Sent x\n"),  # the exchange might be delaying it
    ],
    ids=["fanout", "direct", "headers", "send", "quiet", "x-delay"],
)
@pytest.mark.sampled(2)
def test_a_message_that_no_queue_received_is_reported(shell: Shell, command: str, line: str) -> None:
    """If no queue receives a message that `send` or `emit-log` publishes to an exchange, the line that reports the
    message as sent adds "no queue received it", and the exit code is 0. With -l, the command prints how many messages
    no queue received. With --quiet, it prints neither. It also prints neither if the message has the header x-delay,
    because a delayed-message exchange might still be delaying the message.
    """
    sent = shell.run("mqtool", *command.split())
    assert (sent.stdout, sent.stderr, sent.code) == ("", line, 0)
    piped = shell.run("mqtool", *command.replace(" x", "", 1).split(), "-l", stdin="1\n2\n")
    assert piped.code == 0
    assert ("no queue received 2 of them" in piped.stderr) is ("no queue" in line)


@pytest.mark.parametrize("command", ["send -q gone", "new-task -q gone", "send -e  -r gone"])
@pytest.mark.sampled(2)
def test_messages_sent_after_their_queue_was_deleted_count_as_returned(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """If a queue is deleted while `send -l` or `new-task -l` is publishing to it, the messages sent after the deletion
    count as returned, and --failed-to keeps them. With --no-mandatory, `send` counts messages to a missing queue as
    sent.
    """
    shell.run("mqtool", "queue", "declare", "gone")
    sender = shell.start("mqtool", *command.split(" "), "-l", "-v", "--failed-to", "failed", stdin=PIPE)
    feed = sender.process.stdin
    assert feed is not None
    feed.write(b"1\n2\n")
    feed.flush()
    wait_until(lambda: depth(broker, "gone") == 2, "two messages")
    shell.run("mqtool", "queue", "delete", "gone", "--yes")
    feed.write(b"3\n4\n5\n")
    feed.close()
    result = sender.wait()
    assert result.code == 3, result.stderr
    assert "2 confirmed, 3 returned" in result.stderr
    assert _bodies(shell, "failed") == ["3", "4", "5"]

    none = shell.run("mqtool", *["send", "-e", "", "-r", "gone", "-l"], stdin="6\n")
    assert (none.code, "does not exist" in none.stderr or "no queue received the" in none.stderr) == (75, True)
    assert shell.run("mqtool", *["send", "-e", "", "-r", "gone", "-l", "--no-mandatory"], stdin="7\n").code == 0
    typed = shell.run("mqtool", *["send", "-e", "", "-r", "gone", "x"])
    assert (typed.code, "shows whether queue 'gone' exists" in typed.stderr) == (75, True)


def test_emit_log_suggests_an_exchange_that_has_a_similar_name_and_bindings(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, if no queue receives a message of `emit-log`, but an exchange with a similar name has bindings,
    `emit-log` suggests that exchange.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    send = ("mqtool", "emit-log", "direct", "error", "x", "--no-color")
    assert on_terminal(shell, *send).stdout == " [x] Sent error:x, no queue received it\r\n"
    shell.run("mqtool", "exchange", "declare", "logs_direct", "direct")
    shell.run("mqtool", "queue", "declare", "old")
    shell.run("mqtool", "exchange", "bind", "logs_direct", "old", "info", "error")
    said = ["exchange 'logs_direct' has 2 bindings; to publish there: --exchange=logs_direct"]
    # The command asks the management API for a second at most: a busy RabbitMQ may take longer.
    wait_until(lambda: on_terminal(shell, *send).stdout.splitlines()[1:] == said, "the suggestion")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = "http://127.0.0.1:1"
    assert on_terminal(shell, *send).stdout == " [x] Sent error:x, no queue received it\r\n"


def test_messages_that_a_full_queue_rejects_are_kept(shell: Shell, broker: TestBroker) -> None:
    """If a queue with x-overflow=reject-publish becomes full, `send --failed-to FILE` exits with 3 and keeps exactly
    the rejected messages in FILE.
    """
    full = ["-q", "full", "--queue-type", "classic", "--max-length", "5", "--argument", "x-overflow=reject-publish"]
    result = shell.run("mqtool", "send", *full, "-l", "--failed-to", "failed", stdin=_numbers(200))
    assert result.code == 3, result.stderr
    confirmed = int(result.stderr.split(" confirmed")[0].split("\n")[-1])
    assert confirmed == depth(broker, "full")
    arrived = shell.run("mqtool", "receive", *full, "--raw", "--idle-timeout", IDLE).stdout.split()
    assert sorted(arrived + _bodies(shell, "failed"), key=int) == _numbers(200).split()


def test_rpc_client_reports_that_a_full_queue_refuses_its_request(shell: Shell) -> None:
    """If the request queue is full and has x-overflow=reject-publish, `rpc-client` exits with 75, says that the broker
    refused the request, and names a command that shows the queue.
    """
    full = ["-q", "full", "--queue-type", "classic", "--max-length", "1", "--argument", "x-overflow=reject-publish"]
    assert shell.run("mqtool", "send", *full, "request").code == 0
    asked = shell.run("mqtool", "rpc-client", "-q", "full", "1", "2", "3", "--timeout", "30s")
    assert (asked.code, asked.stdout) == (75, "")
    assert "the broker refused a request to queue 'full'" in asked.stderr
    assert "hint: it may be full: mqtool queue show full" in asked.stderr


def test_messages_are_kept_if_the_exchange_is_deleted_while_they_are_sent(shell: Shell, broker: TestBroker) -> None:
    """If an exchange is deleted while `send -l --failed-to FILE` is publishing to it, the command prints the broker's
    error, keeps all unconfirmed messages in FILE, and exits with 3.
    """
    broker.api("PUT", f"exchanges/{broker.vhost}/fleeting", {"type": "fanout"})
    broker.api("PUT", f"queues/{broker.vhost}/q", {"durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/fleeting/q/q", {})
    sender = shell.start("mqtool", "send", "-e", "fleeting", "-l", "-v", "--failed-to", "failed", stdin=PIPE)
    sender.write(_numbers(100).encode())
    wait_until(lambda: sender.stderr.count("Sent '") == 100, "the confirms of the first 100 messages")
    broker.api("DELETE", f"exchanges/{broker.vhost}/fleeting")
    sender.process.stdin.write(b"".join(b"%d\n" % number for number in range(100, 3_000)))
    sender.process.stdin.close()

    result = sender.wait()

    assert result.code == 3, result.stderr
    assert "no exchange 'fleeting'" in result.stderr
    assert "100 confirmed, 2,900 unanswered in " in result.stderr
    assert _bodies(shell, "failed") == [str(number) for number in range(100, 3_000)]


@pytest.fixture
def own_shell(lonely_shell: Shell, amqp_vhost: Vhost) -> Shell:
    """A shell whose embedded broker can simulate faults."""
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    return lonely_shell


def _ndjson(*lines: dict[str, object]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    "bad",
    [{"headers": {"x": "x" * 200_000}}, {"headers": {"x" * 300: 1}}, {"delay": "60d"}],
    ids=["headers larger than a frame", "a long name of a header", "a long delay"],
)
def test_send_stops_at_a_line_that_cannot_be_published(shell: Shell, bad: dict[str, object]) -> None:
    """If a line of input is valid NDJSON but cannot be published, for example because its headers are larger than a
    frame, `send --json --failed-to FILE` exits with 65 and names the line. Neither this line nor any later one is sent
    or written to FILE.
    """
    lines = _ndjson({"body": "1"}, {"body": "2", **bad}, {"body": "3"})
    sent = shell.run("mqtool", "send", "-q", "q", "--json", "--failed-to", "failed", stdin=lines)
    assert (sent.code, "1 confirmed" in sent.stderr) == (65, True), sent.stderr
    assert "mqtool: line 2 cannot be sent: " in sent.stderr
    assert _bodies(shell, "failed") == []


def test_the_option_failed_to_keeps_a_delayed_message_that_cannot_be_sent_with_mandatory(shell: Shell) -> None:
    """If a message in the input has a delay, which cannot be combined with --mandatory, `send --json --mandatory
    --failed-to FILE` exits with 2. It writes this message and all later ones to FILE, because they can be sent
    without --mandatory.
    """
    lines = _ndjson({"body": "1"}, {"body": "2", "delay": "1m"}, {"body": "3"})
    sent = shell.run("mqtool", "send", "-q", "q", "--json", "--mandatory", "--failed-to", "failed", stdin=lines)
    assert (sent.code, "1 confirmed" in sent.stderr) == (2, True), sent.stderr
    assert _bodies(shell, "failed") == ["2", "3"]


def test_a_refusal_is_reported_although_an_unused_routing_key_in_a_later_line_is_too_long(shell: Shell) -> None:
    """With -q QUEUE, `send --json` ignores the routing keys in its input. If the broker refuses a message, and a
    later line has a routing key that is too long, `send --json -q QUEUE --failed-to FILE` therefore reports the
    refusal, and does not exit with 65, the exit code for an invalid line. FILE contains the refused message and the
    later one.
    """
    lines = _ndjson(
        {"body": "1"}, {"body": "2", "properties": {"user_id": "somebody"}}, {"body": "3", "routing_key": "k" * 300}
    )
    sent = shell.run("mqtool", "send", "--json", "-q", "q", "--failed-to", "failed", stdin=lines)
    assert sent.code in (3, 75), sent.stderr
    assert "user_id" in sent.stderr
    assert _bodies(shell, "failed")[-2:] == ["2", "3"]


def test_send_reports_both_an_invalid_line_and_a_full_disk(shell: Shell) -> None:
    """If the broker refuses a message and a later line of the input is invalid, `send --json --failed-to FILE` writes
    the unconfirmed messages from before the invalid line to FILE.unfinished. If the disk becomes full while this file
    is being written, the command exits with 1, and says that FILE.unfinished contains only the first part of these
    messages. It also prints a warning about the invalid line.
    """
    shell.start_cold()  # a limit is inherited
    refused = {"body": "2", "properties": {"user_id": "somebody"}}
    many = [{"body": "x" * 1_000}] * 400
    (shell.directory / "input").write_text(_ndjson({"body": "1"}, refused, *many) + "oops\n")
    full = shell.script("ulimit -f 100; mqtool send --json -q q -f input --failed-to failed")
    assert full.code == 1, full.stderr
    assert "mqtool: cannot write to " in full.stderr
    assert "failed.unfinished: File too large\nhint: it has the first of the messages" in full.stderr
    assert "warning: line 403, column 1, is not JSON" in full.stderr
    assert not (shell.directory / "failed").exists()


def test_send_exits_with_65_after_an_invalid_line_although_the_broker_also_refuses_a_message(shell: Shell) -> None:
    """If the broker refuses a message, and a later line of the input is invalid, `send --json --failed-to FILE`
    reports both and exits with 65. This exit code means that the lines after the invalid one are not in FILE. FILE
    contains the unconfirmed messages before the invalid line.
    """
    assert shell.run("mqtool", "queue", "declare", "q").code == 0
    lines = '{"body": "1"}\n{"body": "2", "exchange": "nosuch"}\noops\n{"body": "last"}\n'
    (shell.directory / "input").write_text(lines)
    sent = shell.run("mqtool", "send", "--json", "-r", "q", "-f", "input", "--failed-to", "failed")
    assert sent.code == 65, sent.stderr
    assert "warning: no exchange 'nosuch'" in sent.stderr
    assert "mqtool: line 3, column 1, is not JSON" in sent.stderr
    assert _bodies(shell, "failed") in (["1", "2"], ["2"])


def _replay_of_two(shell: Shell, exchange: str) -> list[str]:
    """Return a command that publishes message 1 to an exchange, with the key q, and would publish message 2 an hour
    later.
    """
    lines = [
        {"timestamp": f"2026-01-31T1{hour}:00:00Z", "exchange": exchange, "routing_key": "q", "body": str(hour)}
        for hour in (1, 2)
    ]
    (shell.directory / "recording").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["mqtool", "recording", "replay", "-v", "--failed-to", "failed", "recording"]


def test_replay_exits_with_65_if_a_line_after_a_refused_message_is_invalid(shell: Shell) -> None:
    """If the broker refuses a message because its exchange does not exist, `recording replay --failed-to FILE` stops
    publishing, and saves this message and the rest of the recording in FILE. If a later line is invalid, the command
    exits with 65, and saves only the messages before this line.
    """
    replay = _replay_of_two(shell, "nosuch")
    with (shell.directory / "recording").open("a") as file:
        file.write('oops\n{"exchange": "", "routing_key": "q", "body": "last"}\n')
    replayed = shell.run(*replay)
    assert replayed.code == 65, replayed.stderr
    assert "warning: no exchange 'nosuch'" in replayed.stderr
    assert "mqtool: line 3, column 1, is not JSON" in replayed.stderr
    assert _bodies(shell, "failed") == ["1", "2"]


def test_replay_exits_with_65_if_the_rest_of_a_recording_cannot_be_read(shell: Shell) -> None:
    """If the broker refuses a message of `recording replay --failed-to FILE`, and the rest of the input cannot be read,
    the command exits with 65. FILE contains the unconfirmed messages that were read.
    """
    replayed = shell.run(*_replay_of_two(shell, "nosuch"), "/proc/self/mem")  # it can be opened, but not read
    assert replayed.code == 65, replayed.stderr
    assert "warning: no exchange 'nosuch'" in replayed.stderr
    assert "mqtool: cannot read the input: Input/output error\n" in replayed.stderr
    assert _bodies(shell, "failed") == ["1", "2"]


def test_replay_exits_with_65_if_a_later_line_cannot_be_published(shell: Shell) -> None:
    """If the broker refuses a message of `recording replay --failed-to FILE`, and a later line is valid NDJSON but
    cannot be published, for example because a header's name is too long, the command exits with 65. FILE contains the
    unconfirmed messages before this line.
    """
    replay = _replay_of_two(shell, "nosuch")
    with (shell.directory / "recording").open("a") as file:
        late = {"timestamp": "2026-01-31T13:00:00Z", "exchange": "", "routing_key": "q"}
        file.write(_ndjson({**late, "body": "3", "headers": {"x" * 300: 1}}, {**late, "body": "last"}))
    replayed = shell.run(*replay)
    assert replayed.code == 65, replayed.stderr
    assert "warning: no exchange 'nosuch'" in replayed.stderr
    assert "mqtool: line 3 cannot be sent: " in replayed.stderr
    assert _bodies(shell, "failed") == ["1", "2"]


@on_any_broker
def test_replay_exits_with_65_after_ctrl_c_if_the_rest_of_the_recording_is_invalid(shell: Shell) -> None:
    """If Ctrl-C ends `recording replay --failed-to FILE`, and a line that has not been published yet is invalid, the
    command exits with 65. FILE contains the unconfirmed messages before the invalid line.
    """
    assert shell.run("mqtool", "queue", "declare", "q").code == 0
    replay = _replay_of_two(shell, "")
    with (shell.directory / "recording").open("a") as file:
        file.write("oops\n")
    replayed = shell.start(*replay).wait_for_stderr("Replayed 1 bytes").interrupt().wait()
    assert replayed.code == 65, replayed.stderr
    assert "mqtool: line 3, column 1, is not JSON" in replayed.stderr
    assert _bodies(shell, "failed") == ["2"]


def test_the_refusal_of_a_valid_message_is_not_an_error_in_the_input(shell: Shell) -> None:
    """If the broker closes the channel because of a valid message, such as one whose user_id names another user, `send
    --json --failed-to FILE` exits with 75, not with 65 as for invalid input. FILE contains all messages that were not
    confirmed.
    """
    assert shell.run("mqtool", "queue", "declare", "q").code == 0
    lines = '{"body": "1", "properties": {"user_id": "somebody"}}\n{"body": "2"}\n'
    sent = shell.run("mqtool", "send", "--json", "-r", "q", "--failed-to", "failed", stdin=lines)
    assert sent.code == 75, sent.stderr
    assert "user_id" in sent.stderr
    assert _bodies(shell, "failed") == ["1", "2"]


@large
def test_after_ctrl_c_each_line_was_either_confirmed_or_kept(shell: Shell) -> None:
    """After Ctrl-C in `send -l -f INPUT --failed-to FILE`, each line of INPUT either has been confirmed or is kept in
    FILE, even if the last line does not end with a newline.
    """
    (shell.directory / "lines").write_text(_numbers(100_000).removesuffix("\n"))
    result = shell.run_until("Sent", signal.SIGINT, "mqtool send -l -v -f lines --failed-to failed")
    assert result.code == 130
    confirmed = int(result.stderr.split(" confirmed")[0].split("\n")[-1].replace(",", ""))
    kept = _bodies(shell, "failed")
    assert 0 < confirmed < 100_000
    assert kept == [str(number) for number in range(confirmed, 100_000)]


def test_replay_keeps_the_message_that_is_due_next(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """If the broker goes down while `recording replay --failed-to FILE` is waiting until the next message is due, the
    command gives up reconnecting and exits with 3. FILE contains the message that was due next, and all later ones.
    """
    # fmt: off
    lines = "".join(
        json.dumps({"body": str(second), "exchange": "", "routing_key": "q",
                    "timestamp": f"2026-01-31T18:{second}:00Z"}) + "\n" for second in (10, 20, 30)
    )
    # fmt: on
    (own_shell.directory / "recorded").write_text(lines)
    own_shell.run("mqtool", "receive", "-q", "q", "--idle-timeout", "1ms")
    replay = ("mqtool", "recording", "replay", "recorded", "-v", "--max-reconnects", "1", "--failed-to", "failed")
    running = own_shell.start(*replay).wait_for_stderr("Replayed")
    _lose(amqp_vhost)
    assert running.wait().code == 3
    assert _bodies(own_shell, "failed") == ["20", "30"]


def test_send_gives_up_after_the_attempts_that_max_reconnects_allows(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """`send --max-reconnects 2 --failed-to FILE` gives up after two failed attempts to reconnect and keeps the unsent
    messages in FILE. If other messages had already been confirmed, the command exits with 3.
    """
    sender = own_shell.start("mqtool", "send", "-l", "-v", "--max-reconnects", "2", "--failed-to", "failed", stdin=PIPE)
    sender.write(b"first\n")
    sender.wait_for_stderr("Sent 'first'")
    _lose(amqp_vhost)
    sender.process.stdin.write(b"second\n")
    sender.process.stdin.close()
    result = sender.wait()
    assert result.code == 3
    told = r"1 of the messages sent was not confirmed: gave up reconnecting to \S+ after 2 attempts"
    assert re.search(told, result.stderr)
    assert _bodies(own_shell, "failed") == ["second"]


@pytest.mark.parametrize(
    ("words", "text", "kept"),
    [(["-l"], "one\ntwo\n", ["one", "two"]), ([], "all", ["all"])],
    ids=["lines", "one message"],
)
def test_exit_code_69_means_that_nothing_was_sent_or_kept(
    own_shell: Shell, amqp_vhost: Vhost, words: list[str], text: str, kept: list[str]
) -> None:
    """If `send --failed-to FILE` loses the connection before any confirm and cannot reconnect, the command exits with
    75 and keeps the messages in FILE. If `send` cannot reach the broker at all, it exits with 69 and does not write
    FILE.
    """
    send = ("mqtool", "send", *words, "--max-reconnects", "1", "--failed-to", "failed")
    amqp_vhost.faults.delay_confirms()
    sender = own_shell.start(*send, stdin=PIPE)
    assert sender.process.stdin is not None
    sender.process.stdin.write(text.encode())
    sender.process.stdin.close()
    wait_until(lambda: len(amqp_vhost.queue("hello").messages()) == len(kept), "all are published")
    _lose(amqp_vhost)
    lost = sender.wait()
    assert (lost.code, "gave up reconnecting" in lost.stderr) == (75, True), lost.stderr
    assert _bodies(own_shell, "failed") == kept

    (own_shell.directory / "failed").unlink()
    assert own_shell.run(*send, stdin=text).code == 69
    assert not (own_shell.directory / "failed").exists()


def test_send_exits_with_75_if_it_loses_the_connection_after_all_messages_were_returned(
    own_shell: Shell, amqp_vhost: Vhost
) -> None:
    """If `send` loses the connection after the broker has returned all messages as unroutable, `send` exits with 75,
    because no queue accepted a message. It does not exit with 69, which would mean that it published none.
    """
    sender = own_shell.start("mqtool", "send", "-l", "-r", "nosuch", "--no-reconnect", stdin=PIPE)
    sender.write(b"a\n")
    sender.wait_for_stderr("returned: 'a'")
    _lose(amqp_vhost)
    assert sender.wait().code == 75


@pytest.mark.parametrize("progress", [False, True], ids=["no confirm", "confirms"])
def test_max_reconnects_counts_the_attempts_since_the_last_confirm(
    own_shell: Shell, amqp_vhost: Vhost, *, progress: bool
) -> None:
    """--max-reconnects limits the failed attempts to reconnect since the last confirm. If `send` reconnects, but loses
    the connection again before a confirm, this attempt counts as failed.
    """
    sender = own_shell.start("mqtool", "send", "-l", "-v", "--max-reconnects", "2", stdin=PIPE)
    assert sender.process.stdin is not None
    for number in range(3):
        if progress or not number:
            sender.write(b"%d\n" % number)
            sender.wait_for_stderr(f"Sent '{number}'")
        amqp_vhost.faults.cut_connections()
        wait_until(
            lambda losses=number + 1: sender.stderr.count("connected again") == losses or "gave up" in sender.stderr,
            "reconnected, or given up",
        )
    assert ("gave up reconnecting" in sender.stderr) is not progress
    sender.process.stdin.close()
    assert sender.wait().code == (0 if progress else 3)  # one message was sent


def _unread(pipe: IO[bytes]) -> int:
    count = array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]


def _lose(vhost: Vhost) -> None:
    """Stop the broker."""
    vhost.faults.refuse_connections()
    vhost.faults.cut_connections()


def _block(vhost: Vhost) -> None:
    """Raise a memory alarm: the broker accepts one more message from each publisher, and confirms none."""
    vhost.faults.delay_confirms()
    vhost.faults.block_publishers("low")


def _silence(vhost: Vhost) -> None:
    """Let the broker keep its connections open, but neither read nor write."""
    vhost.faults.go_silent()


@pytest.mark.parametrize("fault", [_lose, _silence], ids=["is down", "is silent"])
def test_rpc_client_times_out_while_the_broker_is_down_or_silent(
    own_shell: Shell, amqp_vhost: Vhost, fault: Callable[[Vhost], None]
) -> None:
    """If the broker goes down or falls silent after the first of two replies, `rpc-client --timeout` prints the first
    reply, and exits with 124 when the time is up. The error says how many replies are missing.
    """
    program = 'read -r x; [ "$x" = one ] || exec sleep 1000; echo "$x"'
    own_shell.start("mqtool", "rpc-server", "--shell", "--exec", program).wait_until_ready()
    client = own_shell.start("mqtool", "rpc-client", "--text", "one", "two", "--timeout", "6s", ready=False)
    client.wait_for_stdout("one")
    fault(amqp_vhost)
    result = client.wait()
    assert (result.code, result.stdout) == (124, " [.] Got one\n"), result.stderr
    assert "mqtool: 1 of 2 replies did not come in time: request 2\nhint: --timeout waits longer\n" in result.stderr


def test_rpc_client_times_out_while_the_broker_blocks_publishers(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """While the broker blocks publishers, `rpc-client --timeout` exits with 124 when the time is up."""
    own_shell.start("mqtool", "rpc-server").wait_until_ready()
    _block(amqp_vhost)
    result = own_shell.run("mqtool", "rpc-client", "7", "--timeout", "500ms")
    assert (result.code, result.stdout) == (124, ""), result.stderr
    assert "mqtool: 1 of 1 replies did not come in time" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("fault", [_block, _lose], ids=["blocks publishers", "is down"])
def test_sigterm_or_sighup_ends_send_while_the_broker_is_down_or_blocks_publishers(
    own_shell: Shell, amqp_vhost: Vhost, fault: Callable[[Vhost], None], number: int
) -> None:
    """While the broker is down or blocks publishers, SIGTERM or SIGHUP ends `send --failed-to FILE` with exit code 75,
    and FILE keeps the unconfirmed messages.
    """
    sender = own_shell.start("mqtool", "send", "-l", "-v", "--failed-to", "failed", stdin=PIPE)
    sender.write(b"first\n")
    sender.wait_for_stderr("Sent 'first'")
    fault(amqp_vhost)
    sender.write(b"second\nthird\n")
    sender.wait_for_stderr("blocks publishers (low)" if fault is _block else "lost the connection")
    wait_until(lambda: _unread(sender.process.stdin) == 0, "both lines are read")
    sender.process.send_signal(number)

    result = sender.wait()

    assert result.code == 75, result.stderr
    assert re.search("stopped with [12] messages? unconfirmed: the ", result.stderr)
    assert "1 confirmed, " in result.stderr
    assert _bodies(own_shell, "failed") == ["second", "third"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_send_over_amqp_1_0_immediately_while_the_broker_blocks_publishers(
    own_shell: Shell, amqp_vhost: Vhost, number: int
) -> None:
    """If the broker blocks publishers while `send --protocol amqp1.0 --failed-to FILE` still has messages to send,
    `send` reports that the broker blocks publishers. Ctrl-C or SIGTERM then ends `send` with exit code 75, without
    waiting for --confirm-timeout, and FILE contains the message that was not confirmed.
    """
    options = ("--protocol", "amqp1.0", "--confirm-timeout", "1h", "--failed-to", "failed")
    sender = own_shell.start("mqtool", "send", "-l", "-v", *options, stdin=PIPE)
    sender.write(b"first\n")
    sender.wait_for_stderr("Sent 'first'")
    amqp_vhost.faults.block_publishers("low")
    sender.write(b"second\n")
    sender.wait_for_stderr("Sent 'second'")  # after the first message that the broker gets, it closes the window
    sender.write(b"third\n")
    sender.wait_for_stderr("the broker blocks publishers")
    sender.process.send_signal(number)
    result = sender.wait()
    assert result.code == 75, result.stderr
    assert "stopped with 1 message unconfirmed: the broker takes no messages" in result.stderr
    assert _bodies(own_shell, "failed") == ["third"]


@pytest.mark.parametrize("ends", ["the alarm is over", "the command is stopped"])
def test_send_over_amqp_1_0_declares_its_queue_only_once_the_broker_unblocks_publishers(
    own_shell: Shell, amqp_vhost: Vhost, ends: str
) -> None:
    """If `send --protocol amqp1.0` starts while the broker blocks publishers, it prints that it is waiting. Once the
    broker unblocks publishers, `send` declares the queue and sends its message. If Ctrl-C stops `send` before that,
    it exits with 69.
    """
    with amqp_vhost.faults.block_publishers("low"):
        sender = own_shell.start("mqtool", "send", "--protocol", "amqp1.0", "x", ready=False)
        sender.wait_for_stderr("blocks publishers, and takes no declarations; waiting until it unblocks them")
        if ends == "the command is stopped":
            sender.process.send_signal(signal.SIGINT)
            result = sender.wait()
            assert result.code == 69
            assert result.stderr.splitlines()[1:] == ["mqtool: stopped: the broker takes no messages"]
            return
    result = sender.wait()
    assert result.code == 0, result.stderr
    assert "the broker has unblocked publishers" in result.stderr
    assert own_shell.run("mqtool", "receive", "-c", "1", "--timeout", "10s").code == 0


def test_send_keeps_its_messages_when_the_terminal_is_closed(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """If the terminal is closed while the broker blocks publishers, `send -l --failed-to FILE` writes the messages to
    FILE, although it can no longer print anything.
    """
    own_shell.run("mqtool", "queue", "declare", "hello")
    _block(amqp_vhost)
    failed = own_shell.directory / "failed"
    pipeline = "seq 5 | mqtool send -l --no-declare --failed-to failed"
    with closable_terminal(own_shell, "sh", "-c", pipeline) as terminal:
        terminal.wait_for("blocks publishers (low)")
        terminal.close()
        wait_until(failed.exists, "the file")  # the shell ends first, and with it the terminal's session
    assert sorted(_bodies(own_shell, "failed")) == ["1", "2", "3", "4", "5"]


def test_sighup_ends_send_although_its_message_looks_like_the_option_o(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """SIGHUP makes a command with the option -o reopen its output file. `send` has no such option. SIGHUP therefore
    ends `send` with exit code 75, even if the message begins with -o and so looks like this option, and --failed-to
    keeps the message.
    """
    own_shell.run("mqtool", "queue", "declare", "hello")
    _block(amqp_vhost)
    sender = own_shell.start("mqtool", "send", "--no-declare", "--failed-to", "failed", "--", "-oops")
    sender.wait_for_stderr("blocks publishers (low)")
    sender.process.send_signal(signal.SIGHUP)
    assert sender.wait().code == 75
    assert _bodies(own_shell, "failed") == ["-oops"]


def test_send_exits_with_3_if_the_broker_stops_confirming(own_shell: Shell, amqp_vhost: Vhost) -> None:
    """If the broker has confirmed some messages but then confirms no more within --confirm-timeout, `send` exits with
    3, and --failed-to keeps the unconfirmed messages.
    """
    timeout = ("--confirm-timeout", "2s")
    sender = own_shell.start("mqtool", "send", "-l", "-v", *timeout, "--failed-to", "failed", stdin=PIPE)
    sender.write(b"first\n")
    sender.wait_for_stderr("Sent 'first'")
    amqp_vhost.faults.delay_confirms()
    sender.write(b"second\nthird\n")
    result = sender.wait()
    assert result.code == 3, result.stderr
    assert "mqtool: 2 of the messages sent were not confirmed: " in result.stderr
    assert _bodies(own_shell, "failed") == ["second", "third"]


@on_any_broker
@pytest.mark.parametrize("options", [("-l",), ("-l", "--failed-to", "failed"), ("--json",), ()])
def test_send_reports_an_incomplete_message_that_it_does_not_send(shell: Shell, options: tuple[str, ...]) -> None:
    """If SIGTERM ends `send` while it has read only a part of a message, `send` prints the size of this part. It
    neither sends the part nor writes it to the file given with --failed-to.
    """
    whole = '{"body": "first"}\n' * (options != ())
    sender = shell.start("mqtool", "send", "-v", *options, stdin=PIPE)
    sender.write(f"{whole}sec".encode())
    wait_until(lambda: _unread(sender.process.stdin) == 0, "the input is read")
    if whole:
        sender.wait_for_stderr("Sent")
    sender.process.send_signal(signal.SIGTERM)
    result = sender.wait()
    assert result.code == 143, result.stderr
    assert result.stderr.count("an incomplete message at the end of the input was ignored (3 bytes)\n") == 1
    if "failed" in options:
        assert _bodies(shell, "failed") == []


@pytest.mark.parametrize(("fault", "code"), [(_block, 75), (_lose, 0)], ids=["blocks publishers", "is down"])
def test_sigterm_ends_a_worker_that_cannot_publish_a_retry(
    own_shell: Shell, amqp_vhost: Vhost, fault: Callable[[Vhost], None], code: int
) -> None:
    """If the program of `worker` fails for a message, and `worker` cannot publish the retry, SIGTERM ends `worker`, and
    the message stays in its queue. If the broker blocks publishers, the exit code is 75, because the retry is not
    confirmed. If the connection was lost while the program was running, the exit code is 0, because the broker itself
    requeues the message, so no retry is needed.
    """
    own_shell.run("mqtool", "new-task", "task")
    worker = own_shell.start(
        "mqtool", "worker", "--exec", "sh -c 'touch began; until test -e go; do sleep 0.02; done; exit 1'"
    )
    wait_until((own_shell.directory / "began").exists, "the program runs")
    fault(amqp_vhost)
    if fault is _lose:
        worker.wait_for_stderr("lost the connection")
    (own_shell.directory / "go").touch()
    if fault is _block:
        worker.wait_for_stderr("blocks publishers (low)")
    worker.process.send_signal(signal.SIGTERM)

    result = worker.wait()

    assert result.code == code, result.stderr
    amqp_vhost.faults.clear()  # the broker reads nothing from a blocked connection, so it has not noticed its end
    wait_until(lambda: amqp_vhost.queue("task_queue").messages().bodies == [b"task"], "the message in its queue again")


def test_emit_log_declares_a_deleted_exchange_again(shell: Shell, broker: TestBroker) -> None:
    """If the exchange of `emit-log` is deleted while the command is running, the command declares the exchange again,
    and the broker confirms every message.
    """
    sender = shell.start("mqtool", "emit-log", "fanout", "-l", "-v", stdin=PIPE)
    sender.write(b"before\n")
    sender.wait_for_stderr("Sent before")
    broker.api("DELETE", f"exchanges/{broker.vhost}/logs")
    sender.write(b"after\n")
    sender.wait_for_stderr("the broker closed the channel: no exchange 'logs'")
    sender.wait_for_stderr("opened the channel again")
    sender.process.stdin.close()
    result = sender.wait()
    assert result.code == 0, result.stderr
    assert "2 confirmed in " in result.stderr


def test_worker_warns_if_its_timeout_exceeds_the_consumer_timeout(shell: Shell) -> None:
    """`worker --timeout 31m` warns that the timeout exceeds the broker's consumer timeout of 30 minutes. With 29m,
    there is no warning.
    """
    shell.run("mqtool", "new-task", "-l", stdin="1\n2\n")
    result = shell.run("mqtool", "worker", "--exec", "true", "--timeout", "31m", "-c", "1")
    assert "--timeout of 31m is longer than the consumer timeout" in result.stderr
    assert (
        "consumer timeout" not in shell.run("mqtool", "worker", "--exec", "true", "--timeout", "29m", "-c", "1").stderr
    )


def test_rpc_client_says_immediately_that_no_server_consumes(shell: Shell) -> None:
    """If the request queue has no consumer, `rpc-client` immediately prints a note that no server consumes from the
    queue, and waits. Once a server has started, `rpc-client` prints the reply.
    """
    shell.run("mqtool", "queue", "declare", "numbers")
    client = shell.start("mqtool", "rpc-client", "6", "-q", "numbers")
    client.wait_for_stderr(
        "no server consumes from queue 'numbers'; waiting 30s for one: mqtool rpc-server --queue=numbers\n"
    )
    shell.start("mqtool", "rpc-server", "-q", "numbers").wait_until_ready()
    assert client.wait().stdout == " [.] Got 8\n"
    assert "no server" not in shell.run("mqtool", "rpc-client", "6", "-q", "numbers").stderr


@on_any_broker
def test_rpc_client_says_after_ctrl_c_that_its_request_may_stay_in_the_queue(shell: Shell, broker: TestBroker) -> None:
    """If Ctrl-C ends `rpc-client` before the reply has arrived, it exits with 130, and says that the request may
    stay in the queue until the time limit. After the time limit, the exit code is 69, and no request is left.
    """
    assert shell.run("mqtool", "queue", "declare", "rpc_queue").code == 0
    client = shell.start("mqtool", "rpc-client", "30")
    wait_until(lambda: depth(broker, "rpc_queue") == 1, "the request")
    ended = client.interrupt().wait()
    assert ended.code == 130
    assert re.search(r"no reply to 1 request, which may stay in queue 'rpc_queue' for up to \d+s\n$", ended.stderr)
    shell.run("mqtool", "queue", "purge", "rpc_queue", "--yes")
    late = shell.run("mqtool", "rpc-client", "30", "--timeout", "200ms")
    assert (late.code, "expired; start a server: mqtool rpc-server\n" in late.stderr) == (69, True), late.stderr
    wait_until(lambda: depth(broker, "rpc_queue") == 0, "the end of the request")


def test_suggestions_for_a_mistyped_queue_use_mqtool_management_url(lonely_shell: Shell) -> None:
    """If a queue does not exist, a receiving command with --no-declare asks the management API at MQTOOL_MANAGEMENT_URL
    for the names of all queues. It suggests the queue with the most similar name, and exits with 69.
    """
    with EmbeddedBroker(management_port=0) as broker:
        lonely_shell.environment |= {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": str(broker.management_url)}
        lonely_shell.run("mqtool", "queue", "declare", "jobs")
        for command in ("receive", "worker", "rpc-server", "receive-delayed", "receive-log fanout"):
            refused = lonely_shell.run("mqtool", *command.split(), "-q", "jbos", "--no-declare")
            assert (refused.code, "hint: did you mean 'jobs'?" in refused.stderr) == (69, True), refused.stderr


def test_receive_stream_declares_its_stream_whatever_others_named_theirs(shell: Shell, broker: TestBroker) -> None:
    """`receive-stream -q` and `offset receive` declare a missing stream even if another stream has a similar name, and
    say that it is new. With --no-declare, the command exits with 69 and suggests the similar name. If the name is that
    of a queue of another type, the command exits with 78.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "send-stream", "-q", "events", "x")
    shell.run("mqtool", "send-stream", "-q", "orders", "--partitions", "2", "x")
    shell.run("mqtool", "queue", "declare", "classic")
    limit = ("--idle-timeout", "10ms")
    read = ("mqtool", "receive-stream", *limit, "-q")
    refused = shell.run_for_hint("did you mean", *read, "evnets", "--no-declare")
    assert (refused.code, "stream 'evnets' does not exist" in refused.stderr) == (69, True)
    assert "did you mean 'events'? Otherwise, --declare declares it" in refused.stderr
    assert "stream 'evnets' is new\n" in shell.run(*read, "evnets").stderr
    assert "stream 'event' is new; did you mean 'events'?" in on_terminal(shell, *read, "event").stdout
    assert shell.run("mqtool", "offset", "receive", "-q", "eventss", *limit).code == 0
    of_another_type = shell.run("mqtool", "receive-stream", *limit, "-q", "classic")
    assert (of_another_type.code, "queue 'classic' is not a stream" in of_another_type.stderr) == (78, True)
    for words in ([], ["-q", "orders"], ["-q", "new", "--declare"], ["-q", "old", "--argument", "max-age=1h"]):
        assert shell.run("mqtool", "receive-stream", *limit, *words).code == 0


def test_publisher_confirms_explains_the_times_that_it_prints(shell: Shell) -> None:
    """`publisher-confirms all` publishes in three ways (individual, batch and async), and prints how long each of them
    took. Its last line says how many times `batch` waited for confirms, and whether `async` took about as long as
    `batch`.
    """
    shown = shell.run("mqtool", "publisher-confirms", "all", "-c", "500", "--batch-size", "10")
    batch, unwaited = (int(line.rpartition(" in ")[2][:-3].replace(",", "")) for line in shown.stdout.splitlines()[1:])
    said = shown.stderr.splitlines()[-1]
    assert "'batch' waited 50 times, and 'async' did not wait in between." in said
    if abs(unwaited - batch * 0.9) > 1:  # the printed times are rounded
        assert ("take about as long" in said) is (unwaited > batch * 0.9)


@on_any_broker
def test_publisher_confirms_announces_when_it_waits_for_confirms(shell: Shell) -> None:
    """Before each of its three ways of publishing, `publisher-confirms all` says how many messages it will publish and
    when it waits for confirms.
    """
    lines = shell.script("mqtool publisher-confirms all -c 50 --batch-size 10 2>&1").stdout.splitlines()[:6]
    assert lines[::2] == [
        "individual: publishing 50 messages, waiting for each confirm …",
        "batch: publishing 50 messages, waiting once per 10 messages …",
        "async: publishing 50 messages, handling confirms as they arrive …",
    ]
    assert [line.partition(" in ")[0].partition(" and ")[0] for line in lines[1::2]] == [
        "Published 50 messages individually",
        "Published 50 messages",
        "Published 50 messages",
    ]
