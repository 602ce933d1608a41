"""mqtool together with the tutorials' own scripts, in every dialect, whichever starts first. The tests compare all
lines of both: if mqtool declared anything differently, the pika script would end with a 406, and mqtool would print
one more line on stderr.
"""

import pytest

from mqtool.amqp import Connection, administration
from mqtool.delays.delay_plugin import has_plugin
from mqtool.errors import MqtoolError
from mqtool.topology import Exchange, Queue
from mqtool.tutorials.dialects import DELAY_EXCHANGE, Dialect
from tests.brokers import TestBroker
from tests.cli import tutorial_scripts
from tests.cli.shell import IDLE, Result, Running, Shell, wait_until
from tests.cli.tutorial_comparisons import normal

WAITING = " [*] Waiting for messages. To exit press CTRL+C\n"
WAITING_FOR_LOGS = " [*] Waiting for logs. To exit press CTRL+C\n"
AWAITING = " [x] Awaiting RPC requests\n"

QUORUM = {"x-queue-type": "quorum"}

#: Without go-article, which declares the same as go-classic; test_older_tutorials.py tests its lines.
DIALECTS = [Dialect(name) for name in tutorial_scripts.DIALECTS]
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
#: Tutorial 1 runs each dialect in both orders; the other tutorials run half of the dialects in each order.
every_dialect_in_one_order = pytest.mark.parametrize(
    ("dialect", "first"), list(zip(DIALECTS, ["mqtool", "script", "script", "mqtool"], strict=True))
)
in_both_orders = pytest.mark.parametrize("first", ["mqtool", "script"])


class Room:
    """mqtool and the tutorial's own scripts, on the same broker."""

    def __init__(self, shell: Shell, url: str, dialect: Dialect) -> None:
        self._shell = shell
        self._end = ("--dialect", dialect.value, "--url", url)
        self.is_go = dialect.startswith("go")
        self.default = "hello" if self.is_go else "Hello World!"
        self._quotes = dialect is Dialect.PYTHON_CLASSIC
        self.awaiting = " [*] Awaiting RPC requests\n" if self.is_go else " [x] Awaiting RPC requests\n"

    def text(self, body: str) -> str:
        """Return a body as mqtool prints it: in the dialects of older Python scripts, its repr()."""
        return repr(body) if self._quotes else body

    def received(self, body: str) -> str:
        return f"Received a message: {body}\n" if self.is_go else f" [x] Received {self.text(body)}\n"

    def logged(self, key: str, body: str) -> str:
        """The line for a log with its routing key, which the Go scripts do not print."""
        return f"{body}\n" if self.is_go else f"{self.text(key)}:{self.text(body)}\n"

    def on_stream(self, *lines: str) -> tuple[str, str]:
        """The lines as stdout and stderr: the scripts of Go print on stderr, the others on stdout."""
        return ("", "".join(lines)) if self.is_go else ("".join(lines), "")

    def bound(self, exchange: str, *keys: str) -> str:
        """The lines that the scripts of Go print for each binding."""
        lines = [f"Binding queue Q to exchange {exchange} with routing key {key}\n" for key in keys]
        return "".join(lines) if self.is_go else ""

    def mqtool(self, *command: str) -> Result:
        return self._shell.run("mqtool", *command, *self._end)

    def start_mqtool(self, *command: str) -> Running:
        return self._shell.start("mqtool", *command, *self._end).wait_until_ready()

    def script(self, *command: str) -> Result:
        result = self._shell.run("script", tutorial_scripts.__file__, *command, *self._end)
        assert (result.stderr, result.code) == ("", 0)
        return result

    def start_script(self, *command: str) -> Running:
        return self._shell.start("script", tutorial_scripts.__file__, *command, *self._end).wait_for_stdout("\n")


@pytest.fixture
def room(shell: Shell, broker: TestBroker, dialect: Dialect) -> Room:
    return Room(shell, broker.url, dialect)


def leave(running: Running) -> None:
    """Kill the program in the other terminal with kill -9."""
    running.process.kill()
    running.process.wait()


@pytest.mark.once_on_rabbitmq("dialect")
@every_dialect
@in_both_orders
@pytest.mark.sampled(3)
def test_send_and_receive_exchange_messages_with_the_tutorials_scripts(room: Room, first: str) -> None:
    """mqtool's `receive` gets a message from the sending script of RabbitMQ's tutorial 1, and the receiving script of
    that tutorial gets a message from `send`, whichever of the programs starts first.
    """

    def mqtool_sends() -> None:
        sent = room.mqtool("send")
        line = " [x] Sent Hello World!\n" if room.is_go else " [x] Sent 'Hello World!'\n"
        assert (sent.stdout, sent.stderr, sent.code) == (*room.on_stream(line), 0)

    def script_sends() -> None:
        assert room.script("send", "Hello", "there").stdout == " [x] Sent 'Hello there'\n"

    if first == "mqtool":
        mqtool_sends()
        scripts_receiver = room.start_script("receive").wait_for_stdout("Received")
        leave(scripts_receiver)
        receiver = room.start_mqtool("receive", "-c", "1")
        script_sends()
        received = receiver.wait()
    else:
        script_sends()
        received = room.mqtool("receive", "-c", "1")
        scripts_receiver = room.start_script("receive")
        mqtool_sends()
        scripts_receiver.wait_for_stdout("Received")

    assert scripts_receiver.stdout == WAITING + " [x] Received Hello World!\n"
    lines = room.on_stream(WAITING, room.received("Hello there"))
    assert (received.stdout, received.stderr, received.code) == (*lines, 0)


@every_dialect_in_one_order
@pytest.mark.sampled(1)
def test_new_task_and_worker_exchange_tasks_with_the_tutorials_scripts(room: Room, first: str) -> None:
    """mqtool's `worker` handles a task sent by the sending script of RabbitMQ's tutorial 2, and the worker script of
    that tutorial handles a task sent by `new-task`.
    """

    def mqtool_asks() -> None:
        sent = room.mqtool("new-task", "A", "task")
        assert (sent.stdout, sent.stderr, sent.code) == (*room.on_stream(f" [x] Sent {room.text('A task')}\n"), 0)

    def script_asks() -> None:
        assert room.script("new-task").stdout == " [x] Sent Hello World!\n"

    if first == "mqtool":
        mqtool_asks()
        scripts_worker = room.start_script("worker").wait_for_stdout("Done")
        leave(scripts_worker)
        worker = room.start_mqtool("worker")
        script_asks()
        wait = worker.wait_for_stderr if room.is_go else worker.wait_for_stdout
        wait("Hello World!")
        wait_until(lambda: (worker.stdout + worker.stderr).endswith("Done\n"), "the last Done")
        worked = worker.interrupt().wait()
    else:
        script_asks()
        worked = room.mqtool("worker", "-c", "1")
        scripts_worker = room.start_script("worker")
        mqtool_asks()
        scripts_worker.wait_for_stdout("Done")

    assert scripts_worker.stdout == WAITING + " [x] Received A task\n [x] Done\n"
    # The script prints Done before it acknowledges: killed in between, it leaves its task to the next worker.
    done = "Done\n" if room.is_go else " [x] Done\n"
    script_left = room.received("A task") + done
    printed = (worked.stdout.replace(script_left, ""), worked.stderr.replace(script_left, ""), worked.code)
    assert printed == (*room.on_stream(WAITING, room.received("Hello World!"), done), 0)


@pytest.mark.once_on_rabbitmq
@every_dialect_in_one_order
@pytest.mark.sampled(1)
def test_fanout_logs_of_mqtool_and_of_the_tutorials_script_reach_both_receivers(room: Room, first: str) -> None:
    """mqtool's `receive-log` and the receiving script of RabbitMQ's tutorial 3 both get the log messages of
    `emit-log` and those of the tutorial's sending script. A log message that is emitted before any receiver has
    started is lost.
    """
    emit = {"mqtool": lambda: room.mqtool("emit-log", "fanout"), "script": lambda: room.script("emit-fanout", "mine")}
    emit[first]()
    receiver = room.start_mqtool("receive-log", "fanout", "-c", "2")
    scripts_receiver = room.start_script("receive-fanout")

    sent = emit["mqtool"]()
    default = "hello" if room.is_go else "info: Hello World!"
    assert (sent.stdout, sent.stderr, sent.code) == (*room.on_stream(f" [x] Sent {room.text(default)}\n"), 0)
    assert emit["script"]().stdout == " [x] Sent mine\n"
    received = receiver.wait()
    scripts_receiver.wait_for_stdout("mine")

    lines = room.on_stream(WAITING_FOR_LOGS, f" [x] {room.text(default)}\n [x] {room.text('mine')}\n")
    assert (received.stdout, received.stderr, received.code) == (*lines, 0)
    assert scripts_receiver.stdout == WAITING_FOR_LOGS + f" [x] {default}\n [x] mine\n"


@pytest.mark.once_on_rabbitmq
@every_dialect_in_one_order
@pytest.mark.sampled(1)
def test_direct_logs_of_mqtool_and_of_the_tutorials_script_reach_both_receivers(room: Room, first: str) -> None:
    """mqtool's `emit-log` and the sending script of RabbitMQ's tutorial 4 emit log messages. Both `receive-log` and
    the tutorial's receiving script get only the log messages with the severities on their command lines.
    """
    emit = {
        "mqtool": lambda: room.mqtool("emit-log", "direct", "error", "Run. Run.", "Or it will explode."),
        "script": lambda: room.script("emit-direct", "warning", "Hot"),
    }
    emit[first]()
    receiver = room.start_mqtool("receive-log", "direct", "warning", "error", "-c", "2")
    scripts_receiver = room.start_script("receive-direct", "warning", "error")

    unwanted = room.mqtool("emit-log", "direct")
    line = f" [x] Sent {room.logged('info', room.default)}"
    assert (unwanted.stdout, unwanted.stderr, unwanted.code) == (*room.on_stream(line), 0)
    sent = emit["mqtool"]()
    line = f" [x] Sent {room.logged('error', 'Run. Run. Or it will explode.')}"
    assert (sent.stdout, sent.stderr) == room.on_stream(line)
    assert emit["script"]().stdout == " [x] Sent warning:Hot\n"
    received = receiver.wait()
    scripts_receiver.wait_for_stdout("warning")

    logs = [("error", "Run. Run. Or it will explode."), ("warning", "Hot")]
    lines = [f" [x] {room.logged(*log)}" for log in logs]
    printed = room.on_stream(room.bound("logs_direct", "warning", "error"), WAITING_FOR_LOGS, *lines)
    assert (normal(received.stdout), normal(received.stderr), received.code) == (*printed, 0)
    assert scripts_receiver.stdout == WAITING_FOR_LOGS + "".join(f" [x] {key}:{body}\n" for key, body in logs)


@pytest.mark.once_on_rabbitmq
@every_dialect_in_one_order
@pytest.mark.sampled(1)
def test_topic_logs_of_mqtool_and_of_the_tutorials_script_reach_both_receivers(room: Room, first: str) -> None:
    """mqtool's `emit-log` and the sending script of RabbitMQ's tutorial 5 emit log messages. Both `receive-log` and
    the tutorial's receiving script get only the log messages that match a pattern on their command lines, and get
    each of these once.
    """
    emit = {
        "mqtool": lambda: room.mqtool("emit-log", "topic", "kern.critical", "A critical kernel error"),
        "script": lambda: room.script("emit-topic", "cron.critical", "Late"),
    }
    emit[first]()
    receiver = room.start_mqtool("receive-log", "topic", "kern.*", "*.critical", "-c", "2")
    scripts_receiver = room.start_script("receive-topic", "kern.*", "*.critical")

    unwanted = room.mqtool("emit-log", "topic")
    line = f" [x] Sent {room.logged('anonymous.info', room.default)}"
    assert (unwanted.stdout, unwanted.stderr, unwanted.code) == (*room.on_stream(line), 0)
    sent = emit["mqtool"]()
    line = f" [x] Sent {room.logged('kern.critical', 'A critical kernel error')}"
    assert (sent.stdout, sent.stderr) == room.on_stream(line)
    assert emit["script"]().stdout == " [x] Sent cron.critical:Late\n"
    received = receiver.wait()
    scripts_receiver.wait_for_stdout("cron")

    logs = [("kern.critical", "A critical kernel error"), ("cron.critical", "Late")]
    lines = [f" [x] {room.logged(*log)}" for log in logs]
    printed = room.on_stream(room.bound("logs_topic", "kern.*", "*.critical"), WAITING_FOR_LOGS, *lines)
    assert (normal(received.stdout), normal(received.stderr), received.code) == (*printed, 0)
    assert scripts_receiver.stdout == WAITING_FOR_LOGS + "".join(f" [x] {key}:{body}\n" for key, body in logs)


@every_dialect_in_one_order
@pytest.mark.sampled(1)
def test_rpc_server_and_rpc_client_exchange_requests_and_replies_with_the_tutorials_scripts(
    room: Room, first: str
) -> None:
    """mqtool's `rpc-server` answers the client script of RabbitMQ's tutorial 6, and the server script of that
    tutorial answers `rpc-client`, whichever server has declared the queue.
    """

    def mqtool_asks_script() -> None:
        server = room.start_script("rpc-server")
        asked = room.mqtool("rpc-client")
        lines = room.on_stream(" [x] Requesting fib(30)\n", " [.] Got 832040\n")
        assert (asked.stdout, asked.stderr, asked.code) == (*lines, 0)
        assert server.stdout == AWAITING + " [.] fib(30)\n"
        leave(server)

    def script_asks_mqtool() -> None:
        server = room.start_mqtool("rpc-server", "-c", "1")
        assert room.script("rpc-client", "10").stdout == " [x] Requesting fib(10)\n [.] Got 55\n"
        served = server.wait()
        assert (served.stdout, served.stderr, served.code) == (*room.on_stream(room.awaiting, " [.] fib(10)\n"), 0)

    if first == "mqtool":
        script_asks_mqtool()
        mqtool_asks_script()
    else:
        mqtool_asks_script()
        script_asks_mqtool()


# The queue or exchange already exists, but differs.


HELLO = {
    "durable": Queue("hello"),
    "x-queue-type": Queue("hello", durable=True),
    "auto_delete": Queue("hello", auto_delete=True, durable=True, arguments={"x-queue-type": "classic"}),
    "x-max-length": Queue("hello", durable=True, arguments={**QUORUM, "x-max-length": 10}),
}


@pytest.mark.parametrize("difference", HELLO)
@pytest.mark.sampled(1)
def test_an_existing_queue_with_different_arguments_is_used_as_it_is(
    shell: Shell, connection: Connection, broker: TestBroker, difference: str
) -> None:
    """If the tutorial's queue 'hello' exists with properties or arguments that differ from those in the tutorial,
    `send` and `receive` without -q each print a notice and use the queue as it is.
    """
    existing = HELLO[difference]
    keep = connection.channel(strict=True)
    keep.declare(existing)

    sent = shell.run("mqtool", "send")
    received = shell.run("mqtool", "receive", "-c", "1") if not existing.auto_delete else None

    notice, *rest = sent.stderr.splitlines()
    assert notice.startswith("queue 'hello' already exists, and ")
    assert (rest, sent.stdout, sent.code) == ([" [x] Sent 'Hello World!'"], "", 0)
    if received:
        assert received.stderr == notice + "\n" + WAITING
        assert (received.stdout, received.code) == (" [x] Received Hello World!\n", 0)
    keep.declare(existing)  # this fails if mqtool has replaced the queue


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("difference", HELLO)
@pytest.mark.sampled(1)
def test_the_option_strict_refuses_a_queue_with_different_arguments(
    shell: Shell, connection: Connection, difference: str
) -> None:
    """If the queue that `send` or `receive` would declare already exists with other properties or arguments, the
    command with --strict exits with 78 and does not change the queue.
    """
    existing = HELLO[difference]
    keep = connection.channel(strict=True)
    keep.declare(existing)
    list(keep.publish([], routing_key="hello"))

    for command in (("send", "--strict", "new"), ("receive", "--strict", "-c", "1")):
        refused = shell.run("mqtool", *command)
        what, hint = refused.stderr.splitlines()
        assert what.startswith("mqtool: inequivalent arg ")
        assert "for queue 'hello'" in what
        assert hint.startswith("hint: another --dialect may match it")
        assert (refused.stdout, refused.code) == ("", 78)

    assert administration.depth(keep, keep.declare(existing).name).consumers == 0


def test_a_queue_that_the_option_strict_refuses_keeps_its_messages(shell: Shell) -> None:
    """If a queue's properties differ from those that `send` and `receive` would declare, `send --strict` publishes
    nothing to the queue, and `receive --strict` leaves the queue's messages there.
    """
    shell.run("mqtool", "send", "theirs", "--dialect", "python-classic")

    shell.run("mqtool", "send", "ours", "--strict")
    shell.run("mqtool", "receive", "--strict", "-c", "1")

    left = shell.run("mqtool", "receive", "--raw", "--idle-timeout", IDLE, "--dialect", "python-classic", "--strict")
    assert (left.stdout, left.stderr, left.code) == ("theirs\n", WAITING, 0)


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize("command", ["worker", "rpc-server"])
@pytest.mark.sampled(2)
def test_worker_and_rpc_server_use_a_queue_of_another_dialect_unless_strict(
    shell: Shell, strict: bool, command: str
) -> None:
    """`--dialect python-classic` stands for RabbitMQ's older Python tutorials, which declare queues with properties
    that differ from those in the current tutorials. If a queue was declared with this dialect, `worker` and
    `rpc-server` without --dialect print a notice and use the queue as it is. With --strict, they exit with 78.
    """
    other = "python-classic"
    shell.start("mqtool", command, "--dialect", other).wait_until_ready().interrupt().wait()

    if strict:
        result = shell.run("mqtool", command, "--strict")
    else:
        result = shell.start("mqtool", command).wait_until_ready().interrupt().wait()

    assert result.code == (78 if strict else 0)
    assert (" already exists, and " in result.stderr) is not strict
    assert ("inequivalent arg" in result.stderr.splitlines()[0]) is strict


LOGS = {
    "durable": Exchange("logs", "fanout", durable=True),
    "auto_delete": Exchange("logs", "fanout", auto_delete=True),
    "alternate-exchange": Exchange("logs", "fanout", arguments={"alternate-exchange": "amq.fanout"}),
}


@pytest.mark.parametrize("difference", LOGS)
@pytest.mark.sampled(1)
def test_an_existing_exchange_with_different_arguments_is_used_as_it_is(
    shell: Shell, connection: Connection, difference: str
) -> None:
    """If the tutorial's exchange 'logs' exists with properties or arguments that differ from those in the tutorial,
    `emit-log` and `receive-log` without -e each print a notice and use the exchange as it is.
    """
    keep = connection.channel(strict=True)
    keep.declare(LOGS[difference])

    receiver = shell.start("mqtool", "receive-log", "fanout", "-c", "1").wait_until_ready()
    sent = shell.run("mqtool", "emit-log", "fanout")
    keep.declare(LOGS[difference])
    received = receiver.wait()

    notice = sent.stderr.splitlines()[0]
    assert (notice.startswith("exchange 'logs' already exists, and "), difference in notice) == (True, True)
    assert sent.stderr == notice + "\n [x] Sent info: Hello World!\n"
    assert received.stderr == notice + "\n" + WAITING_FOR_LOGS
    assert (received.stdout, received.code) == (" [x] info: Hello World!\n", 0)


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("difference", LOGS)
@pytest.mark.sampled(1)
def test_the_option_strict_refuses_an_exchange_with_different_arguments(
    shell: Shell, connection: Connection, difference: str
) -> None:
    """With --strict, `emit-log` and `receive-log` exit with 78 if the exchange that they would declare already exists
    with other properties or arguments. They do not change the exchange.
    """
    keep = connection.channel(strict=True)
    keep.declare(LOGS[difference])

    for command in ("emit-log", "receive-log"):
        refused = shell.run("mqtool", command, "fanout", "--strict")
        assert refused.stderr.startswith(f"mqtool: inequivalent arg '{difference}' for exchange 'logs'")
        assert (refused.stdout, refused.code) == ("", 78)

    keep.declare(LOGS[difference])


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("strict", [[], ["--strict"]], ids=["default", "strict"])
@pytest.mark.parametrize(
    "command", [["emit-log", "direct", "info", "x"], ["receive-log", "direct", "info"]], ids=lambda command: command[0]
)
def test_an_existing_exchange_of_a_different_type_is_never_used(
    shell: Shell, connection: Connection, command: list[str], strict: list[str]
) -> None:
    """If the exchange that `emit-log` or `receive-log` would declare already exists with another type, the command
    exits with 78, with or without --strict. The hint is to name another exchange.
    """
    existing = Exchange("direct_logs", "topic")
    keep = connection.channel(strict=True)
    keep.declare(existing)

    refused = shell.run("mqtool", *command, *strict)

    what, hint = refused.stderr.splitlines()
    assert what.startswith("mqtool: inequivalent arg 'type' for exchange 'direct_logs'")
    assert hint == "hint: an exchange of another type routes differently; name another with --exchange"
    assert (refused.stdout, refused.code) == ("", 78)
    keep.declare(existing)


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize(
    "command", [["send", "x"], ["receive"], ["worker"], ["rpc-server"]], ids=lambda command: command[0]
)
def test_an_exclusive_queue_of_another_connection_is_never_used(
    shell: Shell, connection: Connection, command: list[str]
) -> None:
    """If a queue is exclusive to another connection, `send`, `receive`, `worker` and `rpc-server` exit with 78. The
    hint is to use another name. The commands do not consume from the queue.
    """
    owner = connection.channel(strict=True)
    theirs = owner.declare(Queue("theirs", exclusive=True))

    refused = shell.run("mqtool", *command, "-q", "theirs")

    what, hint = refused.stderr.splitlines()
    assert what.startswith("mqtool: cannot obtain exclusive access to locked queue 'theirs'")
    assert hint == "hint: the queue is exclusive to another connection; use another name"
    assert (refused.stdout, refused.code) == ("", 78)
    assert administration.depth(owner, theirs.name).consumers == 0


def test_send_declares_a_queue_exactly_as_its_options_say(shell: Shell, connection: Connection) -> None:
    """With --transient and --argument, `send` declares a queue with exactly the properties and arguments that these
    options give, and adds none of its usual defaults.
    """
    result = shell.run("mqtool", "send", "-q", "odd", "--transient", "--argument", "x-max-length=7", "x")

    assert (result.stderr, result.code) == (" [x] Sent 'x'\n", 0)
    strict = connection.channel(strict=True)
    strict.declare(Queue("odd", arguments={"x-max-length": 7}))
    with pytest.raises(MqtoolError):
        strict.declare(Queue("odd"))


@pytest.mark.parametrize("dialect", [Dialect.PYTHON])
@in_both_orders
@pytest.mark.sampled(1)
def test_send_delayed_and_receive_delayed_exchange_messages_with_the_tutorials_scripts(
    room: Room, connection: Connection, first: str
) -> None:
    """With the delayed message plugin, `receive-delayed` gets a message from the sending script of the tutorial on
    delayed messages, and the tutorial's receiving script gets a message from `send-delayed`.
    """
    if not has_plugin(connection.channel(), DELAY_EXCHANGE):
        pytest.skip("this broker has no delayed message plugin")

    def mqtool_to_script() -> None:
        receiver = room.start_script("receive-delayed")
        assert room.mqtool("send-delayed", "--delay", "150ms").code == 0
        receiver.wait_for_stdout("Received")
        leave(receiver)
        assert receiver.stdout == WAITING + " [x] Received Hello World! after 150 ms\n"

    def script_to_mqtool() -> None:
        receiver = room.start_mqtool("receive-delayed", "-c", "1")
        assert room.script("send-delayed").stdout == " [x] Sent 'Hello World!'\n"
        received = receiver.wait()
        assert received.stdout == WAITING + " [x] Received Hello World!\n"
        assert (received.stderr, received.code) == ("", 0)

    ways = [mqtool_to_script, script_to_mqtool]
    for way in ways if first == "mqtool" else reversed(ways):
        way()
