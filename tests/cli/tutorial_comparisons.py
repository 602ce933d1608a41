"""What the scripts of five articles print, line by line, and the mqtool commands that print the same.

If an article shows a terminal, the lines are those on the terminal. If it shows only code, they are those that the code
prints, without the timestamps of Go's log package. A scene starts its receivers in order, then runs its other commands,
one after the other.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

_START, _END = "<!-- the table of scripts: make docs -->\n\n", "\n<!-- the end of the table of scripts -->"


@dataclass(frozen=True)
class Row:
    """A command line of a script, and what it prints.

    Attributes:
        script: the script's command line.
        mqtool: mqtool's, without `mqtool` and --dialect.
        out, err, code: what the script prints on stdout and stderr, and its exit code.
        count: the number of messages that a receiver gets in the scene; None for other commands.
        differs: why mqtool's output differs on purpose; "" if it is the same.
    """

    script: str
    mqtool: str
    out: str = ""
    err: str = ""
    code: int = 0
    count: int | None = None
    differs: str = ""


class Scene(NamedTuple):
    """Command lines that run together, and the dialect of their article."""

    dialect: str
    rows: list[Row]


@dataclass(frozen=True)
class _Script:
    """Makes the rows of scripts that print on one stream."""

    on_stderr: bool = False

    def __call__(self, script: str, mqtool: str, *lines: str, **more: object) -> Row:
        text = "".join(f"{line}\n" for line in lines)
        return Row(script, mqtool, **{"err" if self.on_stderr else "out": text, **more})  # type: ignore[arg-type]


_python, _go = _Script(), _Script(on_stderr=True)

_WAITING, _WAITING_FOR_LOGS = (f" [*] Waiting for {what}. To exit press CTRL+C" for what in ("messages", "logs"))
_TASKS = ["First message.", "Second message..", "Third message...", "Fourth message....", "Fifth message....."]
_SEVERITIES, _KEYS = "[info] [warning] [error]", "[binding_key]..."
_ONE_WORD = "the script ignores a single word; mqtool takes it as the severity"
_INTERRUPTED = "mqtool exits with 0 after Ctrl-C, and prints no traceback"


def _usage(command: str, arguments: str) -> str:
    """Return the scripts' usage line, but with mqtool's name."""
    return f"Usage: mqtool receive-log {command} {arguments}\n"


def _bound(exchange: str, *keys: str) -> list[str]:
    return [f"Binding queue Q to exchange {exchange} with routing key {key}" for key in keys]


def _worked(received: str, done: str, *tasks: str) -> list[str]:
    return [line for task in tasks for line in (received.format(task), done)]


_PYTHON_TASKS = [".1.", ".1. .2.", ".1. .2. .3.", ".1. .2. .3. .4."]
_PYTHON_ARTICLE = [
    [
        _python("receive.py", "receive", _WAITING, " [x] Received 'Hello World!'", count=1),
        _python("send.py", "send", " [x] Sent 'Hello World!'"),
    ],
    [
        _python(
            "work.py", "worker", _WAITING, *_worked(" [x] Received '{}'", " [x] Done", *_PYTHON_TASKS[::2]), count=2
        ),
        _python(
            "work.py", "worker", _WAITING, *_worked(" [x] Received '{}'", " [x] Done", *_PYTHON_TASKS[1::2]), count=2
        ),
        *(_python(f"send.py {task}", f"new-task {task}", f" [x] Sent '{task}'") for task in _PYTHON_TASKS),
    ],
    [_python("send.py", "new-task", " [x] Sent 'xcgj c01'")],
    [
        _python("sub.py", "receive-log fanout", _WAITING_FOR_LOGS, " [x] 'info: Hello World!'", " [x] 'xcgj c01cpp'",
                count=2),
        _python("sub.py > log.log", "receive-log fanout > log.log",
                _WAITING_FOR_LOGS, " [x] 'info: Hello World!'", " [x] 'xcgj c01cpp'", count=2),
        _python("pub.py", "emit-log fanout", " [x] Sent 'info: Hello World!'"),
        _python("pub.py xcgj c01cpp", "emit-log fanout xcgj c01cpp", " [x] Sent 'xcgj c01cpp'"),
    ],
    [
        _python("pub.py, without a receiver", "emit-log fanout", " [x] Sent 'info: Hello World!'"),
    ],
    [
        _python("receive.py info warning error", "receive-log direct info warning error", _WAITING_FOR_LOGS,
                " [x] 'info':'rbmw'", " [x] 'warning':'c01cpp'", " [x] 'error':'xcgj'", count=3),
        _python("receive.py error > log.log", "receive-log direct error > log.log",
                _WAITING_FOR_LOGS, " [x] 'error':'xcgj'", count=1),
        _python("send.py info rbmw", "emit-log direct info rbmw", " [x] Sent 'info':'rbmw'"),
        _python("send.py warning c01cpp", "emit-log direct warning c01cpp", " [x] Sent 'warning':'c01cpp'"),
        _python("send.py error xcgj", "emit-log direct error xcgj", " [x] Sent 'error':'xcgj'"),
        _python("send.py", "emit-log direct", " [x] Sent 'info':'Hello World!'"),
        _python("send.py error", "emit-log direct error", " [x] Sent 'info':'Hello World!'", differs=_ONE_WORD),
        Row("receive.py", "receive-log direct", err=_usage("direct", _SEVERITIES), code=1),
    ],
    [
        _python("recv.py 'xcgj.#'", "receive-log topic 'xcgj.#'", _WAITING_FOR_LOGS, " [x] 'xcgj':'Hello World!'",
                " [x] 'xcgj.rbmw':'Hello World!'", " [x] 'xcgj.rbmw.c01cpp':'Hello World!'", count=3),
        _python("recv.py '#.rbmw'", "receive-log topic '#.rbmw'", _WAITING_FOR_LOGS,
                " [x] 'xcgj.rbmw':'Hello World!'", count=1),
        _python("recv.py '*.rbmw.*'", "receive-log topic '*.rbmw.*'", _WAITING_FOR_LOGS,
                " [x] 'xcgj.rbmw.c01cpp':'Hello World!'", count=1),
        _python("recv.py 'a.#'", "receive-log topic 'a.#'", _WAITING_FOR_LOGS, " [x] 'a':'111'", " [x] 'a.a':'222'",
                count=2),
        _python("recv.py 'a.*.#'", "receive-log topic 'a.*.#'", _WAITING_FOR_LOGS, " [x] 'a.a':'222'", count=1),
        *(_python(f"send.py {key}", f"emit-log topic {key}", f" [x] Sent '{key}':'Hello World!'")
          for key in ("xcgj", "xcgj.rbmw", "xcgj.rbmw.c01cpp")),
        _python("send.py a 111", "emit-log topic a 111", " [x] Sent 'a':'111'"),
        _python("send.py a.a 222", "emit-log topic a.a 222", " [x] Sent 'a.a':'222'"),
        Row("recv.py", "receive-log topic", err=_usage("topic", _KEYS), code=1),
    ],
    [
        _python("recv.py '#.*'", "receive-log topic '#.*'", _WAITING_FOR_LOGS, " [x] '..':'Hello World!'", count=1),
        _python("send.py ..", "emit-log topic ..", " [x] Sent '..':'Hello World!'"),
    ],
    [
        _python("server.py", "rpc-server", " [x] Awaiting RPC requests", " [.] fib(6)", " [.] fib(1)", count=2),
        _python("client.py 6", "rpc-client 6", " [.] Got 8"),
        _python("client.py", "rpc-client", " [.] Got 1"),
        _go("client.py six", "rpc-client six", "ValueError: invalid literal for int() with base 10: 'six'", code=1,
            differs="mqtool prints a usage error instead of a traceback"),
    ],
    [_python("receive.py, then Ctrl-C", "receive", _WAITING, count=0, code=1, differs=_INTERRUPTED)],
]  # fmt: skip
_GO_RECEIVED, _GO_DONE = "Received a message: {}", "Done"
_WAITING_GO = " [*] Waiting for messages. To exit press CTRL + C"
_GO_ARTICLE = [
    [
        _go("receive.go", "receive", "Received a message: Hello, RabbitMQ!", count=1),
        _go("send.go", "send", " [x] Sent Hello, RabbitMQ!"),
    ],
    [
        _go("worker.go", "worker", _WAITING_GO, *_worked(_GO_RECEIVED, _GO_DONE, *_TASKS[::2]), count=3),
        _go("worker.go", "worker", _WAITING_GO, *_worked(_GO_RECEIVED, _GO_DONE, *_TASKS[1::2]), count=2),
        *(_go(f"new_task.go {task}", f"new-task {task}", f" [x] Sent {task}") for task in _TASKS),
    ],
    [_go("new_task.go", "new-task", " [x] Sent hello")],
    [
        _go("receive_log.go", "receive-log fanout", " [*] is running...", " [x] hello", " [x] Hot", count=2),
        _python("emit_log.go", "emit-log fanout", " [x] sent hello"),
        _python("emit_log.go Hot", "emit-log fanout Hot", " [x] sent Hot"),
    ],
    [_python("emit_log.go, without a receiver", "emit-log fanout", " [x] sent hello")],
    [
        _go("receive_log_direct.go warning error", "receive-log direct warning error",
            *_bound("logs_direct", "warning", "error"), _WAITING_FOR_LOGS, " [x] error Run. Run.", count=1),
        _python("emit_log_direct.go", "emit-log direct", " [x] sent hello"),
        _python("emit_log_direct.go error Run. Run.", "emit-log direct error Run. Run.", " [x] sent error Run. Run."),
        Row("receive_log_direct.go", "receive-log direct", err=_usage("direct", _SEVERITIES), code=255),
    ],
    [
        _go("receive_log_topic.go 'kern.*' '#.nil'", "receive-log topic 'kern.*' '#.nil'",
            *_bound("logs_topic", "kern.*", "#.nil"), _WAITING_FOR_LOGS,
            " [x] kern critical Hot", " [x] kern.critical Hot", " [x] hello", count=3),
        _python("emit_log_topic.go kern critical Hot", "emit-log topic kern critical Hot",
                " [x] sent kern critical Hot"),
        _python("emit_log_topic.go kern.critical Hot", "emit-log topic kern.critical Hot",
                " [x] sent kern.critical Hot"),
        _python("emit_log_topic.go", "emit-log topic", " [x] sent hello"),
        Row("receive_log_topic.go", "receive-log topic", err=_usage("topic", _KEYS)),
    ],
    [
        _go("rpc_server.go", "rpc-server", " [*] Awaiting RPC requests", " [.] fib(30)", " [.] fib(10)", " [.] fib(-5)",
            count=3),
        _go("rpc_client.go", "rpc-client", " [x] Requesting fib(30)", " [.] Got 832040"),
        _go("rpc_client.go 10", "rpc-client 10", " [x] Requesting fib(10)", " [.] Got 55"),
        _go("rpc_client.go -5", "rpc-client -5", " [x] Requesting fib(-5)", " [.] Got 0"),
        _go("rpc_client.go ten", "rpc-client ten",
            'Failed to convert arg to integer: strconv.Atoi: parsing "ten": invalid syntax', code=2,
            differs="mqtool prints a usage error instead of a panic"),
    ],
    [_go("receive.go, then Ctrl-C", "receive", count=0, code=130, differs="mqtool exits with 0 after Ctrl-C")],
]  # fmt: skip
_RPC_ARTICLE = [
    [
        _go("server.go", "rpc-server --function add100", " [*] Awaiting RPC req",
            " [.] rpcFunc(11)", "server rpc run...", " [.] rpcFunc(0)", "server rpc run...", count=2),
        Row("client.go -num=11", "rpc-client -num=11 --function add100", "body== 11\n", " [.] Got 111\n"),
        Row("client.go", "rpc-client --function add100", "body== 0\n", " [.] Got 100\n"),
    ],
]  # fmt: skip
_WAITING_2, _RECEIVED_2 = "[*] waiting for messages, to exit press ctrl+c", "received a message:{}"
_GO_ARTICLE_2 = [
    [
        _go("simple consumer", "receive", _WAITING_2, "received a message:Hello World!", count=1),
        _go("simple producer", "send", "[x] sent Hello World! "),
    ],
    [
        _go("work queue consumer", "worker", _WAITING_2,
            *_worked(_RECEIVED_2, _GO_DONE, "hello", "resize a.png"), count=2),
        _go("work queue producer", "new-task", "[x] sent hello "),
        _go("work queue producer resize a.png", "new-task resize a.png", "[x] sent resize a.png "),
    ],
    [
        _go("publish/subscribe consumer", "receive-log fanout", _WAITING_2, " [x] hello", " [x] disk full", count=2),
        _go("publish/subscribe producer", "emit-log fanout", "[x] sent hello "),
        _go("publish/subscribe producer disk full", "emit-log fanout disk full", "[x] sent disk full "),
    ],
    [
        _go("routing consumer info error", "receive-log direct info error",
            *_bound("logs_direct", "info", "error"), _WAITING_2, " [x] hello", " [x] error disk full", count=2),
        _go("routing producer", "emit-log direct", "[x] sent hello "),
        _go("routing producer error disk full", "emit-log direct error disk full", "[x] sent error disk full "),
        Row("routing consumer", "receive-log direct", err=_usage("direct", _SEVERITIES)),
    ],
    [
        _go("topic consumer 'kern.*' info", "receive-log topic 'kern.*' info",
            *_bound("logs_direct", "kern.*", "info"), _WAITING_2, " [x] kern.critical disk full", " [x] hello",
            count=2),
        _go("topic producer kern.critical disk full", "emit-log topic kern.critical disk full",
            "[x] sent kern.critical disk full "),
        _go("topic producer", "emit-log topic", "[x] sent hello "),
        Row("topic consumer", "receive-log topic", err=_usage("topic", _SEVERITIES)),
    ],
]  # fmt: skip
ARTICLES = {
    "python-article": _PYTHON_ARTICLE,
    "go-article": _GO_ARTICLE,
    "go-classic": _RPC_ARTICLE,
    "go-article-2": _GO_ARTICLE_2,
}
SCENES = [Scene(dialect, rows) for dialect, scenes in ARTICLES.items() for rows in scenes]
_TITLES = {
    "python-article": "Older Python scripts whose work queue is `task`: `--dialect python-article`",
    "go-article": "Go scripts whose default topic is `nil.nil`: `--dialect go-article`",
    "go-classic": "Go scripts whose RPC server adds 100: `--dialect go-classic`",
    "go-article-2": "Go scripts that print `[x] sent`, and whose work queue is `hello`: `--dialect go-article-2`",
}


class Task(NamedTuple):
    """A command line of an article that does not run a script, and the mqtool commands for the same task.

    Attributes:
        differs: how they differ, on purpose.
        runs: False if the test cannot run them, because they need Docker or start a broker.
    """

    theirs: str
    mqtool: str
    differs: str = "mqtool's own output"
    runs: bool = True


_NO_INSTALLATION = "nothing needs to be installed; without Docker or RabbitMQ, the embedded broker starts"
_FILE = "the password is in a file, not on the command line"
TASKS = [
    Task("brew install rabbitmq; apt-get install rabbitmq-server", "broker up", _NO_INSTALLATION, runs=False),
    Task("brew services start rabbitmq; rabbitmq-server; invoke-rc.d rabbitmq-server start", "broker up", runs=False),
    Task("invoke-rc.d rabbitmq-server stop; brew services stop rabbitmq", "broker down", runs=False),
    Task("invoke-rc.d rabbitmq-server restart", "broker restart", runs=False),
    Task("docker run -e RABBITMQ_DEFAULT_USER=dusong -e RABBITMQ_DEFAULT_PASS=… -d -v mq-plugins:/plugins -p 5672:5672 "
         "-p 15672:15672 rabbitmq:3.13-management",
         "broker up --kind docker --image 3.13 --user dusong --password-file secret --port 5672 "
         "--management-port 15672",
         f"the image already contains the delayed message plugin for RabbitMQ 3.13; {_FILE}", runs=False),
    Task("loopback_users in rabbitmq.config", "broker up --listen 0.0.0.0",
         "remote clients log in as the user `remote`, not as `guest`", runs=False),
    Task("docker exec -it rabbitmq rabbitmq-plugins enable rabbitmq-delayed-message-exchange",
         "plugin enable rabbitmq_delayed_message_exchange", "the plugin's name has underscores", runs=False),
    Task("rabbitmq-plugins enable rabbitmq_management", "plugin enable rabbitmq_management", runs=False),
    Task("rabbitmq-plugins disable xxx", "plugin disable xxx", runs=False),
    Task("rabbitmqctl list_users", "list users"),
    Task("rabbitmqctl add_user username password", "user add username --password-file secret", _FILE),
    Task("rabbitmqctl change_password username newpassword", "user password username --password-file secret", _FILE),
    Task("rabbitmqctl set_user_tags username administrator", "user tags username administrator"),
    Task("rabbitmqctl list_vhosts", "list vhosts"),
    Task("rabbitmqctl add_vhost vhostname", "vhost add vhostname"),
    Task("rabbitmqctl set_permissions -p vhostname username '^xcgj.*' '.*' '.*'",
         "permission set username --vhost vhostname --configure '^xcgj.*' --write '.*' --read '.*'"),
    Task("rabbitmqctl list_user_permissions username", "list permissions --all-vhosts --where 'user=username'"),
    Task("rabbitmqctl list_permissions -p vhostname", "list permissions --vhost vhostname"),
    Task("rabbitmqctl clear_permissions -p vhostname username", "permission clear username --vhost vhostname"),
    Task("rabbitmqctl delete_vhost vhostname", "vhost delete vhostname --yes"),
    Task("rabbitmqctl delete_user username", "user delete username --yes"),
    Task("rabbitmqctl list_exchanges", "list exchanges"),
    Task("rabbitmqctl list_queues", "list queues"),
    Task("rabbitmqctl list_queues name messages_ready messages_unacknowledged",
         "list queues name messages_ready messages_unacknowledged"),
    Task("rabbitmqctl list_bindings", "list bindings"),
    Task("a durable queue `my_queue`, and a persistent message",
         "send -q my_queue --durable --persistent --dialect go-classic 'Hello, RabbitMQ!'"),
    Task("a publisher that waits up to 5 s for a confirm", "send -q my_queue --confirm-timeout 5s 'Hello, RabbitMQ!'",
         "every command that publishes waits for confirms, and exits with 75 if there is none"),
    Task("a publisher that reconnects", "send -q my_queue --wait 30s 'Hello, RabbitMQ!'",
         "all commands reconnect; `--wait` also waits for a broker that is not up yet"),
    Task("a consumer that acknowledges each message", "receive -q my_queue -c 1",
         "a message is acknowledged once it has been printed"),
    Task("a consumer with a prefetch of 1", "receive -q my_queue -c 1 --prefetch 1"),
    Task("a lazy queue", "queue declare lazy_queue --queue-type classic -a x-queue-mode=lazy",
         "from RabbitMQ 3.12 on, all classic queues keep most messages on disk, and ignore `x-queue-mode`"),
    Task("a dead-letter exchange and its queue", "queue declare orders --dead-letter-exchange ''",
         "the dead letters of `orders` go to the queue `orders.dlq`"),
    Task("a consumer that retries with exponential backoff",
         "worker -q my_queue -c 1 --retries 3 --backoff 1s --exec cat",
         "a program handles each message; after the last retry, the message goes to `my_queue.dlq`"),
    Task("a consumer that handles each message once",
         "worker -q my_queue --idle-timeout 100ms --deduplicate --exec cat",
         "mqtool gives each message a unique id when it publishes it"),
    Task("a message that a dead-letter exchange delays",
         "send -q my_queue --delay 5s --via ttl 'Hello World with delay'"),
    Task("a queue bound to `delay_exchange`, with the key `routing_key`",
         "receive-delayed -r routing_key --idle-timeout 100ms"),
    Task("a message to `delay_exchange`, with the key `routing_key` and the header `x-delay: 5000`",
         "send-delayed -r routing_key --via plugin --delay 5s --dialect go-classic 'Hello World with delay'"),
    Task("a log message to `logs_direct`, with the routing key `log`",
         "emit-log direct log 'this is log' --dialect go-classic",
         "mqtool takes the routing key and the text as arguments"),
]  # fmt: skip


def normal(text: str) -> str:
    """Replace the names that the broker generated."""
    return re.sub(r"amq\.gen-[\w-]+", "Q", text)


def table() -> str:
    """Return the tables of the scripts' command lines and of the articles' other command lines, as Markdown."""
    parts = []
    for dialect, scenes in ARTICLES.items():
        rows = dict.fromkeys(
            (f"`{row.script}`", f"`{row.mqtool}`", row.differs and f"differs by design: {row.differs}")
            for rows in scenes
            for row in rows
        )
        body = "".join(f"| {script} | {ours} | {differs or 'same'} |\n" for script, ours, differs in rows)
        parts.append(f"**{_TITLES[dialect]}**\n\n| script | `mqtool …` | result |\n|---|---|---|\n{body}")
    body = "".join(
        f"| {task.theirs if task.theirs.startswith('a ') else f'`{task.theirs}`'} | `{task.mqtool}` "
        f"| differs by design: {task.differs} |\n"
        for task in TASKS
    )
    parts.append(
        f"**Installation, administration, and fragments of code**\n\n| in the article | `mqtool …` | result |\n"
        f"|---|---|---|\n{body}"
    )
    same, differing = counts()
    total = f"Of {same + differing} command lines, {same} print the same lines, and {differing} differ by design."
    return f"{total} None is missing from mqtool.\n\n" + "\n".join(parts)


def page(text: str) -> str:
    """Return the page with the current table between the two comments that mark its place."""
    before, start, rest = text.partition(_START)
    return before + start + table() + "".join(rest.partition(_END)[1:])


def counts() -> tuple[int, int]:
    """Return the number of distinct rows whose output is the same, and of those whose output differs by design."""
    rows = {(dialect, row.script, row.mqtool, row.differs) for dialect, of in ARTICLES.items() for each in of
            for row in each}  # fmt: skip
    differing = sum(bool(row[3]) for row in rows)
    return len(rows) - differing, differing + len(TASKS)
