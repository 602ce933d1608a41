"""Dead letters are listed, shown, moved back and dropped; no other message moves."""

import json
import os
import pty
import re
import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pika
import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal

BODIES = ["one", "two", "three"]


@pytest.fixture
def dead(shell: Shell) -> Shell:
    """Three dead letters of queue jobs, with ids m-one, m-two and m-three."""
    lines = "".join(json.dumps({"body": body, "properties": {"message_id": f"m-{body}"}}) + "\n" for body in BODIES)
    shell.run("mqtool", "send", "-q", "jobs", "--json", stdin=lines)
    shell.run("mqtool", "worker", "-q", "jobs", "-c", "3", "--shell", "--exec", "echo no >&2; exit 65")
    return shell


def test_dlq_show_leaves_the_dead_letters_in_order(dead: Shell) -> None:
    """`dlq show` prints the id, reason, attempts, error and body of each dead letter, oldest first, and leaves the dead
    letters in the same order.
    """
    for _ in range(2):
        shown = dead.run("mqtool", "dlq", "show", "jobs").stdout
        lines = shown.splitlines()
        assert [line.split(": ")[0] for line in lines[::3]] == ["m-one", "m-two", "m-three"]
        assert "m-one: rejected after 1 attempt, first on " in shown
        assert lines[1:3] == ["  error: exit status 65: no", "  body:  one"]
    one = json.loads(dead.run("mqtool", "dlq", "show", "jobs", "--id", "m-two", "--json").stdout)
    assert one["body"] == "two"


def test_dlq_ls_lists_dead_letter_queues_and_dlq_redrive_needs_an_existing_target(
    dead: Shell, broker: TestBroker
) -> None:
    """`dlq ls` lists each queue that holds messages dead-lettered by `worker` or through a dead-letter exchange, with
    the number of dead letters and their reasons. If no management API answers, `dlq ls` exits with 69. `dlq redrive
    --to QUEUE` also exits with 69 if QUEUE does not exist.
    """
    broker.api("PUT", f"exchanges/{broker.vhost}/graveyard", {"type": "fanout", "durable": True})
    broker.api("PUT", f"queues/{broker.vhost}/buried", {"durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/graveyard/q/buried", {})
    dead.run("mqtool", "send", "-q", "short", "--dead-letter-exchange", "graveyard", "--max-length", "1", "first")
    dead.run("mqtool", "send", "-q", "short", "--dead-letter-exchange", "graveyard", "--max-length", "1", "second")
    wait_until(lambda: depth(broker, "buried") == 1, "the broker's own dead letter")

    listed = dead.run("mqtool", "dlq", "ls", "--management", broker.management)
    assert listed.stdout.splitlines() == ["buried\t1\t1 maxlen", "jobs.dlq\t3\t3 rejected"]
    drawn = on_terminal(dead, "mqtool", "dlq", "ls", "--management", broker.management).stdout
    assert re.sub(r"\x1b\[[0-9;]*m", "", drawn).splitlines()[0].split() == ["queue", "messages", "reasons"]

    back = dead.run("mqtool", "dlq", "redrive", "any", "--from", "buried", "--to", "elsewhere")
    assert back.code == 69
    assert "queue 'elsewhere' does not exist" in back.stderr
    assert back.stderr.endswith("hint: nothing was moved; to declare it: mqtool queue declare elsewhere\n")
    assert dead.run("mqtool", "dlq", "redrive", "any", "--from", "buried", "--to", "jobs").code == 0

    nowhere = dead.run("mqtool", "dlq", "ls", "--management", "http://localhost:1")
    assert nowhere.code == 69
    assert "no management API answers" in nowhere.stderr


def test_dlq_show_indents_every_line_of_a_body(shell: Shell) -> None:
    """`dlq show` indents every line of a body, so that a body cannot look like another dead letter."""
    shell.run("mqtool", "queue", "declare", "jobs.dlq")
    shell.run("mqtool", "send", "-r", "jobs.dlq", "one\nm-2: rejected, from jobs")
    shown = shell.run("mqtool", "dlq", "show", "jobs").stdout
    assert shown.endswith("\n  body:  one\n    m-2: rejected, from jobs\n")


def test_dlq_show_says_that_a_queue_is_empty(shell: Shell) -> None:
    """If the dead-letter queue is empty, `dlq show` says so. With --id, it says instead that the queue has no such dead
    letter.
    """
    shell.run("mqtool", "queue", "declare", "jobs.dlq")
    assert shell.run("mqtool", "dlq", "show", "jobs").stderr == "jobs.dlq is empty\n"
    assert shell.run("mqtool", "dlq", "show", "jobs", "--id", "x").stderr == "jobs.dlq has no such dead letter\n"


def test_dlq_show_wraps_a_long_error_between_words(shell: Shell) -> None:
    """On a terminal, `dlq show` wraps a long error between words at 80 columns; in a pipe, the error is on one line."""
    shell.run("mqtool", "send", "-q", "jobs", "x")
    error = " ".join(["unreasonable"] * 12)
    shell.run("mqtool", "worker", "-q", "jobs", "-c", "1", "--shell", "--exec", f"echo {error} >&2; exit 65")
    shown = on_terminal(shell, "mqtool", "dlq", "show", "jobs").stdout
    assert shown.count("unreasonable") == 12
    assert max(map(len, shown.split("\r\n"))) <= 80
    assert error in shell.run("mqtool", "dlq", "show", "jobs").stdout


def test_dlq_redrive_by_id_moves_one_message_back(dead: Shell, broker: TestBroker) -> None:
    """`dlq redrive --id` moves back only the dead letter with this message id, and `worker` counts the attempts to
    handle this message from 1 again. The other dead letters stay where they are, in the same order.
    """
    result = dead.run("mqtool", "dlq", "redrive", "jobs", "--id", "m-two")
    assert "1 moved back from jobs.dlq" in result.stderr
    again = dead.run("mqtool", "worker", "-q", "jobs", "-c", "1", "--shell", "--exec", "cat; echo ,$MQ_ATTEMPT")
    assert again.stdout == "two,1\n"
    left = dead.run("mqtool", "dlq", "show", "jobs", "--json").stdout.splitlines()
    assert [json.loads(line)["body"] for line in left] == ["one", "three"]
    assert depth(broker, "jobs") == 0


@on_any_broker
@pytest.mark.parametrize("mode", [1, 2])
def test_dlq_redrive_keeps_the_delivery_mode(shell: Shell, mode: int) -> None:
    line = json.dumps({"body": "one", "properties": {"delivery_mode": mode}})
    for name in ("modes.dlq", "back"):
        shell.run("mqtool", "queue", "declare", name)
    expiring = ("--ttl=1ms", "--dead-letter-exchange=", "--argument=x-dead-letter-routing-key=modes.dlq")
    shell.run("mqtool", "queue", "declare", "modes", *expiring)
    shell.run("mqtool", "send", "-q", "modes", "--no-declare", "--json", stdin=line + "\n")
    wait_until(lambda: "1 expired" in shell.run("mqtool", "dlq", "ls").stdout, "the dead letter")
    redriven = shell.run("mqtool", "dlq", "redrive", "modes", "--to", "back", "--yes")
    assert redriven.code == 0, redriven.stderr
    moved = json.loads(shell.run("mqtool", "receive", "-q", "back", "-c", "1", "--json").stdout)
    assert moved["properties"]["delivery_mode"] == mode


@pytest.mark.until("4.3", "a letter published again does not name its exchange")
def test_dlq_redrive_ignores_headers_that_a_publisher_forged(shell: Shell, broker: TestBroker) -> None:
    """`worker` writes the name of the original queue to the headers of each dead letter. If a publisher has forged
    these headers, `dlq redrive` does not move the message to the queue named in them.
    """
    shell.run("mqtool", "receive", "-q", "payroll", "--declare", "--idle-timeout", "10ms")
    forged = ("-H", "mqtool-queue=payroll", "-H", "mqtool-reason=rejected")
    shell.run("mqtool", "send", "-q", "orders.dlq", *forged, "written to the dead-letter queue")
    shell.run("mqtool", "queue", "declare", "orders", "--dead-letter-exchange", "", "--ttl", "1ms")
    shell.run("mqtool", "send", "-q", "orders", *forged, "dead-lettered by the broker")
    wait_until(lambda: depth(broker, "orders.dlq") == 2, "both dead letters")

    result = shell.run("mqtool", "dlq", "redrive", "orders", "--yes")

    assert "says that it came from 'payroll', which does not dead-letter to 'orders.dlq'" in result.stderr
    assert "1 moved back from orders.dlq" in result.stderr
    assert depth(broker, "payroll") == 0


@on_any_broker
def test_dlq_drop_needs_yes_without_a_terminal(dead: Shell, broker: TestBroker) -> None:
    """Without a terminal, `dlq drop` exits with 2 and deletes nothing unless --yes is given. The hint suggests --yes.
    If the command would delete all dead letters, the hint also suggests --id, which selects one.
    """
    refused = dead.run("mqtool", "dlq", "drop", "jobs")
    assert (refused.code, "hint: pass --yes, or select with --id" in refused.stderr) == (2, True)
    selected = dead.run("mqtool", "dlq", "drop", "jobs", "--id", "m-one")
    assert (selected.code, selected.stderr.splitlines()[-1]) == (2, "hint: pass --yes")
    assert depth(broker, "jobs.dlq") == 3
    assert dead.run("mqtool", "dlq", "drop", "jobs", "--id", "m-one", "--yes").code == 0
    assert depth(broker, "jobs.dlq") == 2
    assert "m-one" not in dead.run("mqtool", "dlq", "show", "jobs").stdout


@on_any_broker
def test_dlq_commands_do_not_ask_if_there_are_no_dead_letters(dead: Shell) -> None:
    """On a terminal, `dlq drop` and `dlq redrive` do not ask for confirmation if there are no dead letters. Without a
    terminal and without --yes, `dlq drop` drops nothing, and says how many dead letters it would drop.
    """
    assert "this would drop all 3 messages of jobs.dlq for good\n" in dead.run("mqtool", "dlq", "drop", "jobs").stderr
    dead.run("mqtool", "dlq", "drop", "jobs", "--id", "m-one", "--id", "m-two", "--yes")
    assert "this would drop 1 message of jobs.dlq for good\n" in dead.run("mqtool", "dlq", "drop", "jobs").stderr
    dead.run("mqtool", "dlq", "drop", "jobs", "--yes")
    for verb, done in (("drop", "dropped"), ("redrive", "moved back")):
        none = on_terminal(dead, "mqtool", "dlq", verb, "jobs")
        assert (none.code, none.stdout) == (0, f"0 {done} from jobs.dlq\r\n")


@on_any_broker
@pytest.mark.parametrize("verb", ["show", "redrive", "drop"])
@pytest.mark.sampled(1)
def test_dlq_commands_refuse_the_name_of_a_dead_letter_queue(dead: Shell, verb: str) -> None:
    """If `dlq show`, `dlq redrive` or `dlq drop` is given the name of a dead-letter queue, the command exits with 69,
    and the hint is the same command with the queue from which the dead letters came.
    """
    wrong = dead.run("mqtool", "dlq", verb, "jobs.dlq")
    hint = f"hint: 'jobs.dlq' has the dead letters of 'jobs': mqtool dlq {verb} jobs\n"
    assert (wrong.code, hint in wrong.stderr) == (69, True), wrong.stderr


@on_any_broker
def test_dlq_show_says_what_declares_a_missing_dead_letter_queue(shell: Shell) -> None:
    """If a queue has no dead-letter queue yet, `dlq show` exits with 69, and the hint says that `worker` declares the
    dead-letter queue when it dead-letters the first message.
    """
    shell.run("mqtool", "send", "-q", "jobs", "one")
    shown = shell.run("mqtool", "dlq", "show", "jobs")
    hint = "hint: 'mqtool worker' declares it for the first message that it dead-letters; --from names another queue\n"
    assert (shown.code, shown.stderr) == (69, f"mqtool: queue 'jobs.dlq' does not exist\n{hint}")


def test_dlq_drop_by_id_keeps_the_order_of_the_others(shell: Shell) -> None:
    """`dlq drop --id` removes one of 300 dead letters from a quorum queue. The others keep their order."""
    lines = "".join(json.dumps({"body": str(n), "properties": {"message_id": str(n)}}) + "\n" for n in range(300))
    shell.run("mqtool", "send", "-q", "jobs.dlq", "--queue-type", "quorum", "--json", stdin=lines)
    assert "1 dropped" in shell.run("mqtool", "dlq", "drop", "jobs", "--id", "7", "--yes").stderr
    left = shell.run("mqtool", "receive", "-q", "jobs.dlq", "-c", "299", "--idle-timeout", "5s", "-F", "%b").stdout
    assert left.split() == [str(n) for n in range(300) if n != 7]


@on_any_broker
@pytest.mark.parametrize("verb", ["redrive", "drop"])
def test_dlq_commands_exit_with_3_if_a_given_id_belongs_to_no_dead_letter(dead: Shell, verb: str) -> None:
    """If a given id is not that of a dead letter, `dlq redrive --id` and `dlq drop --id` name this id and exit with 3,
    but still move or drop the dead letters with the other given ids. They also exit with 3 if they are run a second
    time with the same id, or if the dead-letter queue is empty.
    """
    done, hint = ("moved back" if verb == "redrive" else "dropped"), "hint: to list them: mqtool dlq show jobs\n"
    command = ("mqtool", "dlq", verb, "jobs", "--yes")
    mixed = dead.run(*command, "--id", "m-one", "--id", "m-four")
    missing = "mqtool: no dead letter has the id 'm-four'\n"
    assert (mixed.code, mixed.stderr) == (3, f"1 {done} from jobs.dlq\n{missing}{hint}")
    repeated = dead.run(*command, "--id", "m-one")
    missing = "mqtool: no dead letter has the id 'm-one'\n"
    assert (repeated.code, repeated.stderr) == (3, f"0 {done} from jobs.dlq\n{missing}{hint}")
    assert dead.run(*command, "--id", "m-two", "--reason", "expired").code == 0  # there is one, but it is not chosen
    assert dead.run(*command).stderr == f"2 {done} from jobs.dlq\n"
    empty = dead.run(*command, "--id", "m-one")
    assert (empty.code, empty.stderr) == (3, f"0 {done} from jobs.dlq\n{missing}{hint}")


def test_dlq_drop_drops_only_as_many_dead_letters_as_its_prompt_says(dead: Shell, broker: TestBroker) -> None:
    """If a dead-letter queue has 3 messages, `dlq drop` asks whether to drop all 3. If another dead letter arrives
    before the user answers yes, the command drops 3 dead letters and keeps the new one.
    """
    screen, terminal = pty.openpty()
    try:
        dropping = dead.start("mqtool", "dlq", "drop", "jobs", stdin=terminal)
        dropping.wait_for_stderr("drop all 3 messages of jobs.dlq for good? [y/N]")
        dead.run("mqtool", "send", "-q", "jobs.dlq", "--queue-type", "classic", "late")
        os.write(screen, b"y\n")
        assert dropping.wait().stderr.endswith("3 dropped from jobs.dlq\n")
    finally:
        os.close(screen)
        os.close(terminal)
    wait_until(lambda: depth(broker, "jobs.dlq") == 1, "the late dead letter to be requeued")
    assert "  body:  late\n" in dead.run("mqtool", "dlq", "show", "jobs").stdout


def bury(shell: Shell, count: int) -> None:
    """Publish dead letters of the queue jobs, which is empty."""
    shell.run("mqtool", "send", "-q", "jobs", "x")
    shell.run("mqtool", "receive", "-q", "jobs", "-c", "1")
    # fmt: off
    shell.run("mqtool", "send", "-q", "jobs.dlq", "--queue-type", "classic", "-H", "mqtool-queue=jobs", "-H",
              "mqtool-reason=rejected", "--persistent", "-l", stdin="".join(f"{n}\n" for n in range(count)))
    # fmt: on


@on_any_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_dlq_redrive_leaves_each_message_in_exactly_one_queue(
    shell: Shell, broker: TestBroker, number: signal.Signals
) -> None:
    """After SIGINT or SIGTERM, `dlq redrive` exits with 128 + the number of the signal. Each message is then either
    back in its original queue or still in the dead-letter queue. The command says how many it has moved back.
    """
    count = 3_000
    bury(shell, count)
    ended = shell.run_until("Redriven", number, "mqtool dlq redrive jobs --yes -v")
    assert ended.code == 128 + number
    wait_until(lambda: depth(broker, "jobs.dlq") + depth(broker, "jobs") >= count, "the rest to be requeued")
    moved = depth(broker, "jobs")
    assert 0 < moved < count
    assert moved + depth(broker, "jobs.dlq") == count
    assert ended.stderr.splitlines()[-1] == f"{moved:,} moved back from jobs.dlq"


def test_dlq_redrive_loses_no_message_if_it_is_killed(shell: Shell, broker: TestBroker) -> None:
    """If `dlq redrive` is killed with kill -9, a second run moves the remaining messages back, and none is lost. At
    most 100 messages arrive twice, both times with the same message id.
    """
    count = 3_000
    bury(shell, count)
    killed = shell.run_until("Redriven", signal.SIGKILL, "mqtool dlq redrive jobs --yes -v")
    assert killed.code == 128 + signal.SIGKILL
    wait_until(lambda: depth(broker, "jobs.dlq") + depth(broker, "jobs") >= count, "the rest to be requeued")
    assert depth(broker, "jobs.dlq") > 0, "it was killed after the last message"

    second = shell.run("mqtool", "dlq", "redrive", "jobs")

    assert second.code == 0, second.stderr
    assert depth(broker, "jobs.dlq") == 0
    back = str(depth(broker, "jobs"))
    came = shell.run("mqtool", "receive", "-q", "jobs", "-c", back, "-F", "%b %i").stdout.splitlines()
    assert {line.split()[0] for line in came} == {str(number) for number in range(count)}
    assert len(set(came)) == count
    assert len(came) - count <= 100


@on_any_broker
def test_recording_reconcile_reports_missing_doubled_and_reordered_messages(shell: Shell) -> None:
    """`recording reconcile` compares two recordings by message id, lists missing, doubled, unexpected and reordered
    messages, and exits with 3 if any message is missing.
    """

    def lines(*ids: str) -> str:
        return "".join(json.dumps({"body": "", "properties": {"message_id": name}}) + "\n" for name in ids)

    (shell.directory / "sent").write_text(lines("a", "b", "c", "d"))
    (shell.directory / "got").write_text(lines("a", "c", "b", "c", "x"))
    (shell.directory / "all").write_text(lines("a", "b", "c", "d"))

    result = shell.run("mqtool", "recording", "reconcile", "sent", "got")
    assert result.code == 3
    assert result.stdout.splitlines() == [
        "sent        4",
        "got         5",
        "missing     1: d",
        "doubled     1: c",
        "unexpected  1: x",
        "reordered   1: b",
    ]
    assert shell.run("mqtool", "recording", "reconcile", "sent", "all", "--exact").code == 0
    compared = shell.run("mqtool", "recording", "reconcile", "sent", "-", "--json", stdin=lines("a"))
    assert json.loads(compared.stdout)["missing"] == ["b", "c", "d"]


@on_any_broker
def test_recording_reconcile_counts_messages_that_share_an_id(shell: Shell) -> None:
    """If only some of several messages with the same message id arrive, `recording reconcile` reports how many of
    them are missing, and exits with 3. If all of them arrive, none counts as doubled: the command exits with 0 even
    with --exact, which makes it fail if messages are doubled.
    """

    def lines(*ids: str) -> str:
        return "".join(json.dumps({"body": "", "properties": {"message_id": name}}) + "\n" for name in ids)

    (shell.directory / "sent").write_text(lines("1", "1", "2"))
    assert shell.run("mqtool", "recording", "reconcile", "sent", "sent", "--exact").code == 0
    lost = shell.run("mqtool", "recording", "reconcile", "sent", "-", stdin=lines("1", "2"))
    assert lost.stdout.splitlines()[:4] == ["sent        3", "got         2", "missing     1: 1", "doubled     0"]
    assert (lost.code, lost.stderr) == (3, "mqtool: 1 of 3 messages is missing\n")


def test_dlq_ls_exits_with_69_if_the_management_api_is_not_at_its_usual_port(lonely_shell: Shell) -> None:
    """If no management URL is given, and no management API answers on the usual port, `dlq ls` exits with 69, even if
    the broker has a management API on another port.
    """
    with EmbeddedBroker(management_port=0) as broker:  # at a port where no command looks
        listed = lonely_shell.run("mqtool", "dlq", "ls", "-u", broker.url)
    assert (listed.stdout, listed.code) == ("", 69)
    assert "management API" in listed.stderr


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.sampled(1)
def test_expired_messages_and_those_beyond_the_maximum_length_are_dead_lettered(shell: Shell, queue_type: str) -> None:
    """If `send` declares a queue with --ttl, --max-length and --dead-letter-exchange, the queue dead-letters the
    messages that expire and those beyond its maximum length.
    """
    dead = shell.start("mqtool", "receive", "--declare", "-q", "q.dlq", "-c", "3", "-F", "%b").wait_until_ready()
    limits = ["--ttl", "1s", "--max-length", "2", "--dead-letter-exchange", ""]
    for body in ("first", "second", "third"):
        assert shell.run("mqtool", "send", "-q", "q", "--queue-type", queue_type, *limits, body).code == 0
    assert dead.wait().stdout.split() == ["first", "second", "third"]


@pytest.fixture(params=["3.10", "4.0", "4.3"])
def like(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """A shell with a broker that behaves like a version of RabbitMQ; 4.x ignores an x-death that clients publish."""
    with EmbeddedBroker(like=request.param) as broker, Shell(tmp_path, {"MQTOOL_URL": broker.url}) as shell:
        yield shell


@pytest.mark.sampled(1)
def test_dlq_show_keeps_the_order_despite_a_forged_delivery_count(like: Shell) -> None:
    """`dlq show` does not change the order of messages in a classic queue, even if the first one was published with a
    forged x-delivery-count of 1000. A second run prints the same order.
    """
    like.run("mqtool", "queue", "declare", "jobs.dlq", "--queue-type", "classic", "--argument", "x-max-length=10")
    for given, message_id in ("x-delivery-count:=1000", "forged"), ("a=b", "honest"):
        like.run("mqtool", "send", "-r", "jobs.dlq", "-H", given, "--property", f"message-id={message_id}", "x")
    for _ in range(2):
        shown = like.run("mqtool", "dlq", "show", "jobs")
        assert shown.code == 0, shown.stderr
        assert [line.partition(":")[0] for line in shown.stdout.splitlines() if line[0] != " "] == ["forged", "honest"]


@pytest.mark.sampled(1)
@large
def test_redrives_and_attempts_are_counted_even_if_the_broker_ignores_x_death(like: Shell) -> None:
    """RabbitMQ 4.0 and later ignore an x-death header that a client publishes; earlier versions do not. With every
    version, `dlq show` shows how many times a message was redriven, and `worker` counts the attempts to handle a
    message. The test uses embedded brokers that behave like RabbitMQ 3.10, 4.0 and 4.3.
    """
    like.run("mqtool", "queue", "declare", "jobs.dlq", "--queue-type", "classic")
    like.run("mqtool", "queue", "declare", "jobs", "--dead-letter-exchange", "", "--ttl", "1ms")
    like.run("mqtool", "send", "-q", "jobs", "--no-declare", "x")
    for returned in ("", ", redriven 1 time", ", redriven 2 times"):
        wait_until(lambda: like.run("mqtool", "dlq", "show", "jobs").stdout, "the dead letter")
        shown = like.run("mqtool", "dlq", "show", "jobs").stdout
        assert f": expired{returned}, first on " in shown
        assert "1 moved back" in like.run("mqtool", "dlq", "redrive", "jobs", "--yes").stderr
    failing = ("mqtool", "worker", "-q", "work", "-c", "3", "--retries", "2", "--backoff", "10ms", "--shell", "--exec")
    for attempts in (3, 3):
        like.run("mqtool", "send", "-q", "work", "x")
        tried = like.run(*failing, "echo $MQ_ATTEMPT; exit 1").stdout.split()
        assert tried == [str(number) for number in range(1, attempts + 1)]


@pytest.mark.parametrize("command", ["show", "redrive", "drop"])
def test_dlq_commands_refuse_an_unknown_reason(lonely_shell: Shell, command: str) -> None:
    """`dlq show`, `dlq redrive` and `dlq drop` with an unknown --reason exit with 2 and list the known reasons."""
    refused = lonely_shell.run("mqtool", "dlq", command, "jobs", "--reason", "typo")
    assert refused.code == 2
    assert (
        "'typo' is not one of rejected, expired, maxlen, delivery_limit, retries exhausted, unknown" in refused.stderr
    )


@pytest.mark.parametrize(("reason", "moved"), [("rejected", 3), ("reject", 3), ("expired", 0), ("exhausted", 0)])
@pytest.mark.sampled(2)
def test_dlq_redrive_chooses_dead_letters_by_their_reason(dead: Shell, reason: str, moved: int) -> None:
    """`dlq redrive --reason WORD` moves back the dead letters whose reason is or contains this word, and no others."""
    redriven = dead.run("mqtool", "dlq", "redrive", "jobs", "--reason", reason)
    assert (redriven.code, redriven.stderr) == (0, f"{moved} moved back from jobs.dlq\n")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
@pytest.mark.parametrize(
    ("command", "has_api"),
    [("ls", True), *product(("show jobs -c 1", "redrive jobs --error x", "drop jobs --error x --yes"), (True, False))],
)
@pytest.mark.sampled(2)
def test_dlq_commands_stop_before_dead_letters_exceed_the_delivery_limit(
    shell: Shell, broker: TestBroker, command: str, *, has_api: bool
) -> None:
    """`dlq` commands requeue the dead letters that they leave in a quorum queue, and the queue drops a message that is
    requeued more often than its delivery limit allows. The commands end with an error before a dead letter is lost,
    even if the limit is unknown because there is no management API. `dlq redrive --to` still succeeds if it moves all
    dead letters, because it then requeues none.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management if has_api else "http://localhost:1"
    shell.run("mqtool", "queue", "declare", "jobs.dlq", "--queue-type", "quorum", "--argument", "x-delivery-limit=3")
    shell.run("mqtool", "queue", "declare", "other")
    for body in BODIES:
        shell.run("mqtool", "send", "-r", "jobs.dlq", body)
    ended = []
    for _ in range(7):
        ended.append(shell.run("mqtool", "dlq", *command.split()))
        wait_until(lambda: depth(broker, "jobs.dlq") == 3, "all dead letters requeued")
    assert ended[0].code == 0, ended[0].stderr
    assert {each.code for each in ended} == {0, 3 if command == "ls" else 1}
    why = "drops it if it is requeued once more" if has_api else "possibly the limit of 'jobs.dlq'"
    assert any(why in each.stderr for each in ended)
    assert shell.run("mqtool", "dlq", "redrive", "jobs", "--to", "other").code == 0
    assert (depth(broker, "jobs.dlq"), depth(broker, "other")) == (0, 3)


@pytest.mark.parametrize("command", ["redrive jobs --id m-2 --to other", "drop jobs --id m-2 --yes"])
def test_dlq_commands_leave_the_other_dead_letters_in_an_auto_delete_queue(shell: Shell, command: str) -> None:
    """If dead letters are in an auto-delete queue, `dlq redrive` and `dlq drop` with --id do not make the broker delete
    the queue. All other dead letters stay there, in order.
    """
    shell.run("mqtool", "queue", "declare", "jobs.dlq", "--queue-type", "classic", "--auto-delete")
    shell.run("mqtool", "queue", "declare", "other")
    for number in "123":
        shell.run("mqtool", "send", "-r", "jobs.dlq", "--property", f"message-id=m-{number}", number)
    ended = shell.run("mqtool", "dlq", *command.split())
    assert (ended.code, ended.stderr[:2]) == (0, "1 "), ended.stderr
    shown = shell.run("mqtool", "dlq", "show", "jobs", "--json").stdout.splitlines()
    assert [json.loads(line)["body"] for line in shown] == ["1", "3"]


LETTERS = [str(number) for number in range(130)]


@pytest.fixture
def over_limit(tmp_path: Path) -> Iterator[Shell]:
    """A shell with a broker like RabbitMQ 4.3: jobs.dlq holds LETTERS, which died of the delivery limit of jobs.

    Both are quorum queues. So the letters arrive with a delivery count of 3, over the limit of jobs.dlq, 2.
    """
    with EmbeddedBroker(like="4.3", management_port=0) as broker:
        quorum = {"x-queue-type": "quorum", "x-delivery-limit": 2}
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs.dlq"}
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as client:
            channel = client.channel()
            channel.queue_declare("jobs.dlq", durable=True, arguments=quorum)
            channel.queue_declare("jobs", durable=True, arguments=quorum | dead)
            for body in LETTERS:
                channel.basic_publish("", "jobs", body.encode())
            for _ in range(3):
                for _ in LETTERS:
                    last = channel.basic_get("jobs")[0].delivery_tag
                for tag in range(last - len(LETTERS) + 1, last + 1):
                    channel.basic_reject(tag)
        settings = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        with Shell(tmp_path, settings) as shell:
            yield shell


def _bodies(shell: Shell, queue: str) -> list[str]:
    return shell.run("mqtool", "peek", queue, "--raw").stdout.split()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("to", [(), ("--to", "other")])
def test_dlq_redrive_moves_letters_that_are_over_the_delivery_limit_at_the_first_try(
    over_limit: Shell, to: tuple[str, ...]
) -> None:
    """From RabbitMQ 4.3 on, a quorum queue drops a dead letter that is over its delivery limit as soon as a client
    returns it. `dlq redrive` moves all such letters to their queue at the first try, in order.
    """
    over_limit.run("mqtool", "queue", "declare", "other")
    moved = over_limit.run("mqtool", "dlq", "redrive", "jobs", "--yes", *to)
    assert (moved.code, moved.stderr) == (0, f"{len(LETTERS)} moved back from jobs.dlq\n")
    assert _bodies(over_limit, "other" if to else "jobs") == LETTERS
    assert _bodies(over_limit, "jobs.dlq") == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "command",
    [
        ("dlq", "redrive", "jobs", "--yes"),
        ("dlq", "drop", "jobs", "--yes"),
        ("move", "jobs.dlq", "--to", "jobs", "--yes"),
        ("receive", "-q", "jobs.dlq", "-c", "1", "--raw"),
    ],
)
def test_letters_over_the_delivery_limit_that_are_not_selected_stay(
    over_limit: Shell, command: tuple[str, ...]
) -> None:
    """With --where, the commands that take messages out of a queue lose none of the others, although the queue would
    drop those that are over its delivery limit if they were returned: they are published again at its end.
    """
    done = over_limit.run("mqtool", *command, "--where", "body = '7'")
    assert done.code == 0, done.stderr
    assert "over the delivery limit of 2, were published again at its end" in done.stderr
    assert _bodies(over_limit, "jobs.dlq") == [body for body in LETTERS if body != "7"]


@pytest.mark.sampled(1)
def test_letters_over_the_delivery_limit_are_shown_and_none_is_lost(over_limit: Shell) -> None:
    """`dlq ls`, `dlq show` and `peek` show dead letters that are over the delivery limit of their queue, and publish
    them again at its end, which they say once: the new ones have no delivery count.
    """
    shown = over_limit.run("mqtool", "peek", "jobs.dlq", "--raw", "-c", "3")
    assert (shown.code, shown.stdout.split()) == (0, LETTERS[:3])
    assert "3 messages of 'jobs.dlq', over the delivery limit of 2, were published again at its end" in shown.stderr
    letters = over_limit.run("mqtool", "dlq", "show", "jobs", "-c", "3").stdout
    assert re.findall(r"body: +(\d+)", letters) == LETTERS[3:6]
    listed = over_limit.run("mqtool", "dlq", "ls")
    assert listed.code == 0
    assert listed.stdout == "jobs.dlq\t130\t130 delivery_limit\n"
    assert "124 messages of 'jobs.dlq', over the delivery limit of 2, were published again" in listed.stderr
    again = over_limit.run("mqtool", "dlq", "ls")
    assert (again.code, again.stderr) == (0, "")
    assert sorted(_bodies(over_limit, "jobs.dlq"), key=int) == LETTERS
    assert f"{len(LETTERS)} moved back" in over_limit.run("mqtool", "dlq", "redrive", "jobs", "--yes").stderr
