"""What mqtool prints and sends in each dialect, which stands for one version of RabbitMQ's tutorials. The expected
lines are those of the scripts, repeated here so that an error in dialects.py is noticed; Go's lack the time that its
log package adds. The dialects of articles are tested in test_older_tutorials.py.
"""

import json
import shlex

import pytest

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Result, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.tutorial_comparisons import normal

#: For each dialect and command: what it prints when it sends, and what its receiver prints.
SPOKEN = {
    ("python", "send"): (" [x] Sent 'Hello World!'", " [x] Received Hello World!"),
    ("python", "new-task A b"): (" [x] Sent A b", " [x] Received A b"),
    ("python", "emit-log fanout"): (" [x] Sent info: Hello World!", " [x] info: Hello World!"),
    ("python", "emit-log direct error"): (" [x] Sent error:Hello World!", " [x] error:Hello World!"),
    ("python", "emit-log topic"): (" [x] Sent anonymous.info:Hello World!", " [x] anonymous.info:Hello World!"),
    ("python-classic", "send"): (" [x] Sent 'Hello World!'", " [x] Received 'Hello World!'"),
    ("python-classic", "new-task A b"): (" [x] Sent 'A b'", " [x] Received 'A b'"),
    ("python-classic", "emit-log fanout"): (" [x] Sent 'info: Hello World!'", " [x] 'info: Hello World!'"),
    ("python-classic", "emit-log direct error it's"): (""" [x] Sent 'error':"it's\"""", """ [x] 'error':"it's\""""),
    ("python-classic", "emit-log topic"): (
        " [x] Sent 'anonymous.info':'Hello World!'",
        " [x] 'anonymous.info':'Hello World!'",
    ),
    ("go", "send"): (" [x] Sent Hello World!", "Received a message: Hello World!"),
    ("go", "new-task"): (" [x] Sent hello", "Received a message: hello"),
    ("go", "emit-log fanout"): (" [x] Sent hello", " [x] hello"),
    ("go", "emit-log direct error"): (" [x] Sent hello", " [x] hello"),
    ("go", "emit-log direct error Hot"): (" [x] Sent Hot", " [x] Hot"),
    ("go", "emit-log topic"): (" [x] Sent hello", " [x] hello"),
    ("go-classic", "new-task"): (" [x] Sent hello", "Received a message: hello"),
    ("go-classic", "emit-log direct"): (" [x] Sent hello", " [x] hello"),
    ("java-amqp", "send"): (" [x] Sent 'Hello World!'", " [x] Received 'Hello World!'"),
    ("java-amqp", "new-task A b"): (" [x] Sent 'A b'", " [x] Received 'A b'"),
    ("java-amqp", "new-task"): (" [x] Sent ''", " [x] Received ''"),
    ("java-amqp", "emit-log fanout"): (" [x] Sent 'info: Hello World!'", " [x] Received 'info: Hello World!'"),
    ("java-amqp", "emit-log direct error A"): (" [x] Sent 'error':'A'", " [x] Received 'error':'A'"),
    ("java-amqp", "emit-log topic a.b C"): (" [x] Sent 'a.b':'C'", " [x] Received 'a.b':'C'"),
    ("go-amqp", "send"): (" [x] Sent Hello World!", "Received a message: Hello World!"),
    ("go-amqp", "new-task"): (" [x] Sent hello", "Received a message: hello"),
    ("go-amqp", "emit-log fanout"): (" [x] Sent hello", " [x] hello"),
    ("go-amqp", "emit-log direct error Hot"): (" [x] Sent Hot", " [x] Hot"),
    ("go-amqp", "emit-log topic"): (" [x] Sent hello", " [x] hello"),
    ("dotnet-amqp", "send"): (" [x] Sent Hello World!", "Received a message: Hello World!"),
    ("dotnet-amqp", "new-task"): (" [x] Sent 'Hello World!'", " [x] Received 'Hello World!'"),
    ("dotnet-amqp", "emit-log fanout A"): (" [x] Sent 'A'", " [x] Received 'A'"),
    ("dotnet-amqp", "emit-log direct error A"): (" [x] Sent 'error':'A'", " [x] Received 'error':'A'"),
    ("dotnet-amqp", "emit-log topic"): (
        " [x] Sent 'anonymous.info':'Hello World!'",
        " [x] Received 'anonymous.info':'Hello World!'",
    ),
}
RECEIVERS = {
    "send": "receive",
    "new-task": "worker",
    "emit-log fanout": "receive-log fanout",
    "emit-log direct": "receive-log direct info error",
    "emit-log topic": "receive-log topic #",
}


@on_any_broker
@pytest.mark.parametrize(("dialect", "command"), SPOKEN)
@pytest.mark.sampled(6)
def test_each_dialect_prints_the_lines_of_its_scripts(shell: Shell, dialect: str, command: str) -> None:
    """Each value of --dialect stands for one set of tutorial scripts, such as RabbitMQ's older Go tutorials. With this
    option, each command prints the same lines as these scripts: on stderr for Go, and on stdout for the other
    languages.
    """
    sent, received = SPOKEN[dialect, command]
    [receive] = [whose for sender, whose in RECEIVERS.items() if command.startswith(sender)]
    receiver = shell.start("mqtool", *receive.split(), "--dialect", dialect, "-c", "1").wait_until_ready()
    assert of_script(shell.run("mqtool", *command.split(), "--dialect", dialect), dialect) == [sent]
    waiting = "messages" if "emit-log" not in command or dialect in ("java-amqp", "dotnet-amqp") else "logs"
    exchange, *keys = receive.split()[1:] or [""]
    bound = [f"Binding queue Q to exchange logs_{exchange} with routing key {key}" for key in keys]
    assert of_script(receiver.wait(), dialect) == [
        *(bound if dialect.startswith("go") else []),
        f" [*] Waiting for {waiting}. To exit press CTRL+C",
        received,
        *(["Done" if dialect.startswith("go") else " [x] Done"] if receive == "worker" else []),
    ]


def of_script(result: Result, dialect: str) -> list[str]:
    """Return the lines printed on the stream that the dialect's scripts use; assert that the other stream is empty."""
    printed, nothing = (result.stdout, result.stderr)[:: -1 if dialect.startswith("go") else 1]
    assert (nothing, result.code) == ("", 0)
    return normal(printed).splitlines()


@on_any_broker
@pytest.mark.parametrize(
    ("words", "key"),
    [([], "nil.nil"), (["kern.critical", "A"], "nil.nil"), (["kern", "critical", "A"], "kern.critical")],
    ids=["no word", "two words", "three words"],
)
@pytest.mark.sampled(1)
def test_the_dialect_go_article_makes_the_routing_key_from_two_words(shell: Shell, words: list[str], key: str) -> None:
    """`emit-log topic --dialect go-article` imitates the Go script of an article about RabbitMQ. With three or more
    arguments, the routing key consists of the first two, joined with a dot. With fewer, the routing key is `nil.nil`.
    """
    arguments = ("topic", "#", "--dialect", "go-article", "-c", "1", "-F", "%r")
    receiver = shell.start("mqtool", "receive-log", *arguments).wait_until_ready()
    assert shell.run("mqtool", "emit-log", "topic", *words, "--dialect", "go-article").code == 0
    assert receiver.wait().stdout == key + "\n"


@on_any_broker
@pytest.mark.parametrize(
    ("words", "key"),
    [([], "info"), (["kern.critical", "disk", "full"], "kern.critical"), (["cron"], "cron")],
    ids=["no word", "three words", "one word"],
)
@pytest.mark.sampled(1)
def test_the_dialect_go_article_2_takes_the_first_word_as_the_routing_key(
    shell: Shell, words: list[str], key: str
) -> None:
    """`emit-log topic --dialect go-article-2` imitates the Go script of an article about RabbitMQ. The routing key is
    the first argument or, without arguments, `info`.
    """
    arguments = ("topic", "#", "--dialect", "go-article-2", "-c", "1", "-F", "%r %b")
    receiver = shell.start("mqtool", "receive-log", *arguments).wait_until_ready()
    assert shell.run("mqtool", "emit-log", "topic", *words, "--dialect", "go-article-2").code == 0
    assert receiver.wait().stdout == f"{key} {' '.join(words) or 'hello'}\n"


@on_any_broker
@pytest.mark.parametrize(
    ("dialect", "command", "message"),
    [
        ("go", "new-task ''", ("", "hello", "text/plain", 2)),
        ("go", "emit-log direct '' x", ("info", "x", "text/plain", None)),
        ("go-article", "emit-log direct '' x", ("info", " x", "text/plain", None)),
        ("go-article-2", "emit-log direct '' x", ("info", "hello", "text/plain", 2)),
        ("python-classic", "emit-log direct error ''", ("error", "Hello World!", None, None)),
        ("java-amqp", "send ''", ("", "", None, None)),
    ],
)
@pytest.mark.sampled(2)
def test_with_a_dialect_messages_are_those_of_its_scripts(
    shell: Shell, dialect: str, command: str, message: tuple[str, str, str | None, int | None]
) -> None:
    """With --dialect, a command sends the same body, routing key, content type and delivery mode as the dialect's
    script, which may take an empty word as a missing one.
    """
    [receive] = [whose for sender, whose in RECEIVERS.items() if command.startswith(sender)]
    receiver = shell.start("mqtool", *receive.split(), "--dialect", dialect, "-c", "1", "--json").wait_until_ready()
    assert shell.run("mqtool", *shlex.split(command), "--dialect", dialect).code == 0
    received = json.loads(receiver.wait().stdout)
    key = received["routing_key"] if "emit-log" in command else ""
    properties = received["properties"]
    assert (key, received["body"], properties.get("content_type"), properties.get("delivery_mode")) == message


@on_any_broker
def test_with_a_dialect_rpc_messages_are_those_of_its_scripts(shell: Shell, broker: TestBroker) -> None:
    """With --dialect go-classic, RPC requests and replies are text/plain, as those of Go scripts. A server takes one
    request at a time, as all scripts do.
    """
    dialect = ("--dialect", "go-classic")
    shell.run("mqtool", "queue", "declare", "replies")
    server = shell.start("mqtool", "rpc-server", *dialect).wait_until_ready()

    def limits() -> list[int]:
        consumers = broker.api("GET", f"consumers/{broker.vhost}")
        return [each["prefetch_count"] for each in consumers if each["queue"]["name"] == "rpc_queue"]

    wait_until(lambda: limits() == [1], lambda: f"a prefetch of 1, not {limits()}")
    properties = ("--property", "reply-to=replies", "--property", "correlation-id=1")
    shell.run("mqtool", "send", "-q", "rpc_queue", *properties, "5")
    server.wait_for_stderr("fib(5)").interrupt().wait()
    shell.start("mqtool", "rpc-client", *dialect, "5")
    for queue, body in (("replies", "5"), ("rpc_queue", "5")):
        received = json.loads(shell.run("mqtool", "receive", "-q", queue, "-c", "1", "--json").stdout)
        assert (received["body"], received["properties"]["content_type"]) == (body, "text/plain")


@on_any_broker
def test_with_a_dialect_ctrl_c_ends_a_worker_in_the_middle_of_its_task(shell: Shell) -> None:
    """With --dialect, Ctrl-C during a task ends `worker` at once, like the tutorial's script, and the broker redelivers
    the task. So do the tasks that it had prefetched: the worker of go-article-2 has no prefetch limit.
    """
    dialect = ("--dialect", "go-article-2")
    shell.run("mqtool", "new-task", "-l", *dialect, stdin=f"long{'.' * 600}\nnext\n")
    worker = shell.start("mqtool", "worker", *dialect).wait_until_ready().wait_for_stderr("long")
    result = worker.interrupt().wait()
    assert (result.code, "Done" in result.stderr) == (130, False)
    assert shell.run("mqtool", "receive", "-q", "hello", "-c", "2", "-F", "%R").stdout == "1\n1\n"


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("new-task x -q hello --dialect go-classic", "hello false"),
        ("worker --idle-timeout 1ms -q hello --dialect go-classic", "hello false"),
        ("send x -q task_queue --dialect go-classic", "task_queue true"),
        ("send x -q my_queue --dialect go-classic --durable", "my_queue true"),
        ("new-task x --dialect go-article-2", "hello false"),
        ("new-task x --dialect python-article", "task true"),
    ],
)
@on_any_broker
@pytest.mark.sampled(3)
def test_a_dialect_decides_whether_a_named_queue_is_durable(shell: Shell, command: str, settings: str) -> None:
    """Each value of --dialect stands for one set of tutorial scripts, such as RabbitMQ's older Go tutorials. With this
    option, a command declares a named queue as durable or as transient, like these scripts. With --durable, the queue
    is durable in any dialect.
    """
    assert shell.run("mqtool", *command.split()).code == 0
    name, durable = settings.split()
    assert shell.run("mqtool", "list", "queues", "name", "durable", "type").stdout.split()[-3:] == [
        name,
        durable,
        "classic",
    ]


@on_any_broker
def test_send_says_that_the_dialect_makes_a_new_queue_transient(shell: Shell) -> None:
    """`send --dialect go-classic` declares new queues as transient, like the scripts of RabbitMQ's older Go
    tutorials. If `send -q QUEUE` on a terminal declares the queue QUEUE as transient, a note says that the queue is
    transient, and suggests --durable. There is no note if the queue exists, or if --durable is given.
    """
    send = ("mqtool", "send", "x", "--dialect", "go-classic", "-q")
    said = "it is transient, as in --dialect go-classic; for a durable queue, add --durable"
    assert said in on_terminal(shell, *send, "mine").stdout
    assert said not in on_terminal(shell, *send, "mine").stdout
    assert said not in on_terminal(shell, *send, "durable", "--durable").stdout
    assert on_terminal(shell, "mqtool", "send", "x", "--dialect", "go-classic").stdout == " [x] Sent x\r\n"


@on_any_broker
def test_with_a_dialect_raw_output_and_output_files_contain_only_messages(shell: Shell) -> None:
    """Each value of --dialect makes commands print the lines of one set of tutorial scripts. With --dialect and --raw,
    `receive` prints only bodies on stdout, and the script's other lines, such as `Waiting for messages`, on stderr.
    With --dialect and -o FILE, `receive` writes to FILE only the lines that the script prints for messages.
    """
    shell.run("mqtool", "send", "-l", "--dialect", "go-classic", stdin="one\ntwo\n")
    raw = shell.run("mqtool", "receive", "--raw", "-c", "1", "--dialect", "go-classic")
    assert (raw.stdout, raw.stderr) == ("one\n", " [*] Waiting for messages. To exit press CTRL+C\n")
    shell.run("mqtool", "receive", "-o", "file", "-c", "1", "--dialect", "go-classic")
    assert (shell.directory / "file").read_text() == "Received a message: two\n"


@on_any_broker
def test_without_a_dialect_only_messages_go_to_stdout(shell: Shell) -> None:
    """Without --dialect, `receive-log` and `emit-log` print errors and notices on stderr; stdout is only for
    messages.
    """
    missing = shell.run("mqtool", "receive-log", "direct")
    assert (missing.stdout, missing.code) == ("", 2)
    assert missing.stderr.startswith(
        "mqtool: Missing argument 'SEVERITY...'\nhint: for example: mqtool receive-log dir"
    )
    receiver = shell.start("mqtool", "receive-log", "direct", "info", "-c", "1").wait_until_ready()
    sent = shell.run("mqtool", "emit-log", "direct", "info", "x")
    assert (sent.stdout, sent.stderr) == ("", " [x] Sent info:x\n")
    received = receiver.wait()
    assert (received.stdout, received.stderr) == (" [x] info:x\n", " [*] Waiting for logs. To exit press CTRL+C\n")


@on_any_broker
@pytest.mark.parametrize("dialect", ["python-classic", "go-article"])
def test_a_dialect_does_not_change_raw_data(shell: Shell, dialect: str) -> None:
    """With any --dialect, `receive-log --raw` prints bodies unchanged, and `emit-log -l` sends lines unchanged."""
    receiver = shell.start("mqtool", "receive-log", "topic", "#", "--raw", "-c", "2", "--dialect", dialect)
    receiver.wait_until_ready()
    sent = shell.run("mqtool", "emit-log", "topic", "a.b", "-l", "--dialect", dialect, stdin=b"one\n\xfftwo\n")
    assert sent.code == 0
    assert receiver.wait().stdout_bytes == b"one\n\xfftwo\n"


@on_any_broker
@pytest.mark.parametrize(
    ("command", "queue"),
    [("send x", "hello"), ("receive --idle-timeout 1ms", "hello"), ("new-task x", "task_queue"),
     ("worker --idle-timeout 1ms", "task_queue"), ("rpc-server --idle-timeout 1ms", "rpc_queue")],
)  # fmt: skip
@pytest.mark.sampled(2)
def test_a_tutorials_queue_is_declared_without_a_notice(shell: Shell, command: str, queue: str) -> None:
    """On a terminal, a command that declares a queue usually prints the notice that the queue is new. A command that
    stands for a script of RabbitMQ's tutorials, such as `send` or `worker`, declares the tutorial's queue without this
    notice, so that its output begins like the script's, for example with " [x]".
    """
    shown = on_terminal(shell, "mqtool", *command.split()).stdout
    assert shown.startswith(" [")
    assert shell.run("mqtool", "list", "queues", "name").stdout == f"{queue}\n"


@on_any_broker
def test_there_is_no_notice_about_a_predefined_exchange(shell: Shell) -> None:
    """By default, `emit-log` declares a transient exchange. `emit-log -e amq.topic` uses the predefined exchange, which
    is durable, without a notice about this difference.
    """
    assert shell.run("mqtool", "emit-log", "topic", "-e", "amq.topic", "kern.info", "x").stderr == (
        " [x] Sent kern.info:x, no queue received it\n"
    )


@pytest.mark.parametrize(
    ("first", "then", "like"),
    [
        ("send x --dialect go-classic", "receive -c 1", "python-classic or go-classic"),
        ("new-task x --dialect python-classic", "worker -c 1", "python-classic or go-classic"),
        ("send x", "receive -c 1 --dialect go-classic", "python or go"),
        ("new-task x", "worker -c 1 --dialect python-classic", "python or go"),
        ("emit-log fanout --dialect go-classic", "emit-log fanout", "go-classic"),
        ("queue declare hello --queue-type classic", "send", ""),
        ("queue declare hello --queue-type quorum --ttl 1m", "send", ""),
    ],
)
@pytest.mark.sampled(3)
def test_the_notice_about_a_different_queue_names_the_matching_dialect(
    shell: Shell, first: str, then: str, like: str
) -> None:
    """If an existing queue or exchange differs from the one that a command would declare, the command uses the existing
    one and prints a notice. The notice names each --dialect with which the command would have declared exactly the
    existing queue or exchange, if there is any.
    """
    assert shell.run("mqtool", *first.split()).code == 0
    adopted = shell.run("mqtool", *then.split())
    assert adopted.code == 0
    notice = adopted.stderr.splitlines()[0]
    assert " already exists, and " in notice
    assert notice.partition("; --dialect ")[2] == (f"{like} declares it so" if like else "")
