"""Tutorial 1: `send` and `receive` in two terminals, and the queues that they declare."""

import pytest

from mqtool.duration import parse_duration_or_seconds
from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal


def test_send_and_receive_print_the_lines_of_the_tutorial(shell: Shell) -> None:
    """`send` and `receive` print exactly the lines of RabbitMQ's first tutorial. Only the line with the received
    message is printed on stdout.
    """
    sent = shell.run("mqtool", "send")
    received = shell.run("mqtool", "receive", "-c", "1")

    assert (sent.stdout, sent.stderr, sent.code) == ("", " [x] Sent 'Hello World!'\n", 0)
    assert received.stdout == " [x] Received Hello World!\n"
    assert received.stderr == " [*] Waiting for messages. To exit press CTRL+C\n"
    assert received.code == 0


@on_any_broker
def test_aliases_and_options_of_other_tools_are_accepted(shell: Shell, broker: TestBroker) -> None:
    """mqtool accepts the names that other tools use: `publish` for `send`, `sub` for `receive`, `queue ls` for `list
    queues`, and -n for --count. It also accepts a URL without `amqp://`. It reads a time limit without a unit as a
    number of seconds.
    """
    assert shell.run("mqtool", "publish", "-u", broker.url.removeprefix("amqp://"), "hi").code == 0
    received = shell.run("mqtool", "sub", "-n", "1", "--timeout", "60", "--raw")
    assert (received.stdout, received.code) == ("hi\n", 0)
    assert parse_duration_or_seconds("60") == parse_duration_or_seconds("1m")
    assert "hello" in shell.run("mqtool", "queue", "ls", "--management", broker.management).stdout


@on_any_broker
@pytest.mark.parametrize("command", ["send 3", "receive -c 1", "new-task 3", "worker -c 1", "worker -c 1 --exec true",
                                     "rpc-server -c 1", "receive-delayed -c 1"])  # fmt: skip
@pytest.mark.sampled(2)
def test_a_command_with_no_declare_uses_only_existing_queues(shell: Shell, broker: TestBroker, command: str) -> None:
    """If the queue does not exist, a command with --no-declare exits with 69 and declares nothing. If the queue exists,
    the command uses it.
    """
    name, *rest = command.split()
    result = shell.run("mqtool", name, "-q", "jbos", "--no-declare", *rest)
    assert (result.code, "queue 'jbos' does not exist" in result.stderr) == (69, True)
    assert shell.run("mqtool", "list", "queues", "name").stdout == ""
    sends = name in ("send", "new-task")
    shell.run("mqtool", "queue", "declare", "jobs")
    if name == "receive-delayed":
        shell.run("mqtool", "send-delayed", "declares the exchange")
    if not sends:
        shell.run("mqtool", "send", "-q", "jobs", "3")
    used = shell.run("mqtool", name, "-q", "jobs", "--no-declare", *rest)
    assert (used.code, depth(broker, "jobs")) == (0, int(sends)), used.stderr


@pytest.mark.parametrize("command", ["receive-log fanout", "receive-log topic a.#", "receive-delayed -q jobs"])
def test_a_receiver_with_no_declare_declares_no_exchange(shell: Shell, broker: TestBroker, command: str) -> None:
    """If the exchange does not exist, a receiving command with --no-declare exits with 69 and does not declare the
    exchange. If the exchange exists, the command receives from it.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    receive = ("mqtool", *command.split(), "--no-declare", "--idle-timeout", "10ms", "-e", "evnets")
    refused = shell.run(*receive)
    assert (refused.code, "exchange 'evnets' does not exist" in refused.stderr) == (69, True), refused.stderr
    assert "hint: --declare declares it" in refused.stderr
    assert "evnets" not in shell.run("mqtool", "list", "exchanges", "name").stdout
    shell.run("mqtool", *command.split(), "--idle-timeout", "10ms", "-e", "evnets")
    assert shell.run(*receive).code == 0


_RECEIVERS = ["receive", "worker", "worker --exec true", "rpc-server", "receive-log topic a.#", "receive-delayed"]


@on_any_broker
@pytest.mark.parametrize("command", _RECEIVERS)
@pytest.mark.sampled(1)
def test_a_receiver_declares_its_queue(shell: Shell, command: str) -> None:
    """If the queue of a receiving command does not exist, the command declares the queue, and says once that it is new:
    on a terminal, and on stderr in a script. With --declare, a script is not told. With --no-declare, the command exits
    with 69.
    """
    receive = ("mqtool", *command.split(), "--idle-timeout", "10ms", "-q")
    refused = shell.run(*receive, "task", "--no-declare")
    assert (refused.code, "hint: --declare declares it" in refused.stderr) == (69, True)
    first, second = (on_terminal(shell, *receive, "task") for _ in range(2))
    assert (first.code, first.stdout.count("queue 'task' is new")) == (0, 1)
    assert (second.code, "is new" in second.stdout) == (0, False)
    piped = [shell.run(*receive, *words) for words in (["other"], ["other"], ["third", "--declare"])]
    assert [(each.code, each.stderr.count(" is new\n")) for each in piped] == [(0, 1), (0, 0), (0, 0)]
    assert {"task", "other", "third"} <= set(shell.run("mqtool", "list", "queues", "name").stdout.split())


@on_any_broker
def test_a_receiver_declares_no_queue_in_a_protected_context(shell: Shell, broker: TestBroker) -> None:
    """In a protected context, if the queue does not exist, `receive-log -q QUEUE` exits with 69, even if --confirm
    gives the context's name. Only with --declare does the command declare the queue.
    """
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    shell.run("mqtool", "context", "add", "prod", "--url", broker.url, "--protected")
    consume = ("mqtool", "receive-log", "fanout", "-C", "prod", "--confirm", "prod")
    receive = (*consume, "--idle-timeout", "10ms", "-q", "audit")
    refused = shell.run(*receive)
    assert (refused.code, "hint: --declare declares it" in refused.stderr) == (69, True)
    assert shell.run(*receive, "--declare").code == 0


@on_any_broker
@pytest.mark.parametrize("command", ["send", "new-task"])
@pytest.mark.sampled(1)
def test_a_publisher_declares_no_queue_in_a_protected_context(shell: Shell, broker: TestBroker, command: str) -> None:
    """In a protected context, `send` and `new-task` exit with 69 if the queue does not exist, even if it is the default
    queue of the command. The hint suggests an existing queue with a similar name, and says that --declare declares the
    missing queue.
    """
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    management = ("--management", broker.management)
    shell.run("mqtool", "context", "add", "prod", "--url", broker.url, *management, "--protected")
    shell.run("mqtool", "queue", "declare", "invoices")
    publish = ("mqtool", "-C", "prod", command, "x")
    refused = shell.run(*publish, "-q", "invoicse")
    assert (refused.code, "queue 'invoicse' does not exist" in refused.stderr) == (69, True)
    assert "hint: did you mean 'invoices'? Otherwise, --declare declares it" in refused.stderr
    for words in ([], ["-q", "new", "--durable"], ["-q", "new", "--ttl", "5s"]):
        assert "hint: --declare declares it" in shell.run(*publish, *words).stderr, words
    assert shell.run("mqtool", "list", "queues", "name").stdout == "invoices\n"
    for words in (["-q", "invoices"], ["-q", "new", "--declare"], ["-q", "new"], ["--confirm", "prod"]):
        assert shell.run(*publish, *words).code == 0, words


@on_any_broker
@pytest.mark.parametrize("command", ["send", "new-task"])
@pytest.mark.sampled(1)
def test_a_publisher_that_declares_a_mistyped_queue_asks_did_you_mean(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """If `send` or `new-task` on a terminal declares a queue whose name resembles that of an existing one, the command
    asks "did you mean". Once the queue exists, the command no longer asks. With --declare, or if no name is similar,
    the command says only that the queue is new.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "queue", "declare", "invoices")
    said = [
        on_terminal(shell, "mqtool", command, "x", "-q", *words).stdout.splitlines()[0]
        for words in (["invoicse"], ["invoicse"], ["invoice", "--declare"], ["orders"])
    ]
    assert said[0] == "queue 'invoicse' is new; did you mean 'invoices'?"
    assert said[1].startswith(" [x] Sent")
    assert said[2:] == ["queue 'invoice' is new", "queue 'orders' is new"]


@on_any_broker
def test_receive_with_an_offset_declares_a_stream(shell: Shell) -> None:
    """If the queue does not exist, `receive --offset first` declares a stream, whose messages can be read again and
    again.
    """
    receive = ("mqtool", "receive", "-q", "events", "--offset", "first", "--raw")
    assert shell.run(*receive, "--idle-timeout", "10ms").code == 0
    shell.run("mqtool", "send", "-q", "events", "x")
    assert [shell.run(*receive, "-c", "1").stdout for _ in range(2)] == ["x\n", "x\n"]


@on_any_broker
@pytest.mark.parametrize("command", _RECEIVERS)
@pytest.mark.sampled(2)
def test_a_receiver_declares_its_queue_whatever_others_named_theirs(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """A receiving command declares its missing queue even if another queue has a similar name. On a terminal, the
    command asks "did you mean". With --no-declare, the similar name is in the hint.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "queue", "declare", "invoices")
    receive = ("mqtool", *command.split(), "--idle-timeout", "10ms", "-q")
    refused = shell.run_for_hint("did you mean", *receive, "invoicse", "--no-declare")
    assert (refused.code, "did you mean 'invoices'? Otherwise, --declare" in refused.stderr) == (69, True)
    script = shell.run(*receive, "invoicse")
    assert (script.code, script.stderr.count("queue 'invoicse' is new\n")) == (0, 1)
    asked = on_terminal(shell, *receive, "inovices")
    assert asked.code == 0
    assert "queue 'inovices' is new; did you mean 'invoic" in asked.stdout
    assert {"invoicse", "inovices"} <= set(shell.run("mqtool", "list", "queues", "name").stdout.split())


@on_any_broker
def test_send_and_receive_use_an_existing_queue_with_other_arguments(shell: Shell, broker: TestBroker) -> None:
    """With -q, `send` and `receive` use an existing queue whose arguments differ from the commands' defaults. If an
    option sets a value that differs from the queue's, a notice says what the queue keeps, and what to type. Otherwise,
    there is no notice.
    """
    shell.run("mqtool", "queue", "declare", "events", "--queue-type", "classic", "--max-length", "9")
    assert shell.run("mqtool", "send", "-q", "events", "x").stderr == " [x] Sent 'x'\n"
    received = shell.run("mqtool", "receive", "-q", "events", "-c", "1")
    assert (received.stdout, received.stderr) == (
        " [x] Received x\n",
        " [*] Waiting for messages. To exit press CTRL+C\n",
    )
    asked = shell.run("mqtool", "send", "-q", "events", "--max-length", "5", "--queue-type", "classic", "x").stderr
    assert "queue 'events' already exists, and keeps x-max-length 9 instead of 5: --max-length is only for a" in asked
    transient = shell.run("mqtool", "send", "-q", "events", "--persistent", "--transient", "x").stderr
    assert transient.startswith(
        "queue 'events' already exists, and stays durable, not transient: --transient is only for a new queue; "
        "leave it out, or delete the queue first: mqtool queue delete events\n"
    )
