"""The declarations, messages and output of each generation of the official tutorials, in each language.

The tutorials' names and settings differ between languages, and have changed over the years. The broker refuses to
declare a queue again with different settings (406 PRECONDITION_FAILED), so a command that shares a broker with the
script of a tutorial must use the script's settings. https://www.rabbitmq.com/tutorials
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, NamedTuple

from mqtool.errors import Difference
from mqtool.topology import DELAYED, Exchange, Queue

#: The tutorials that also have a version for AMQP 1.0.
OVER_AMQP10 = ("hello-world", "work-queues", "publish-subscribe", "routing", "topics", "rpc")


class Dialect(StrEnum):
    """A set of tutorials. It determines the names and settings that commands use."""

    PYTHON = "python"
    GO = "go"
    PYTHON_CLASSIC = "python-classic"
    GO_CLASSIC = "go-classic"
    GO_ARTICLE = "go-article"
    GO_ARTICLE_2 = "go-article-2"
    PYTHON_ARTICLE = "python-article"
    JAVA_AMQP = "java-amqp"
    GO_AMQP = "go-amqp"
    DOTNET_AMQP = "dotnet-amqp"


def _quorum(name: str) -> Queue:
    return Queue(name, durable=True, arguments={"x-queue-type": "quorum"})


#: The exchange that tutorials about the delayed message plugin declare.
DELAY_EXCHANGE = Exchange("delay_exchange", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})


class DialectNames(NamedTuple):
    """The queues and exchanges of the tutorials, as one dialect declares them."""

    hello: Queue
    task_queue: Queue
    rpc_queue: Queue
    fanout: Exchange
    direct: Exchange
    topic: Exchange
    headers: Exchange
    delay_exchange: Exchange
    delay_queue: Queue

    def queue(self, name: str | None, default: Queue) -> Queue:
        """Return the tutorials' queue of this name, or else the default."""
        queues = (each for each in self if isinstance(each, Queue))
        return next((each for each in queues if each.name == name), default)


class DialectLines:
    """The lines that a tutorial's scripts print, and the messages that they send by default; a subclass per dialect.

    Attributes:
        waiting, waiting_task, waiting_log, waiting_log_with_key: the line that a receiver prints when it is ready.
        binding, binding_topic: the line for each binding of a receiver of logs.
        received, log, log_with_key: lines printed for a received message; each one ends with the body.
        received_task: the line that a worker prints, if it differs from a receiver's.
        got: the line for a reply.
        number, number_add100: what the RPC client asks for by default.
        properties: the properties of every message, including RPC requests and replies.
        persistent_logs: True if the publishers of logs send persistent messages.
        worker_prefetch: the worker's prefetch; 0 means no limit.
        empty_text_is_missing: True if an empty message, as in `new-task ''`, is replaced by the default one.
        empty_word_is_missing: True if an empty first word stands for the default message or routing key.
        keeps_empty_logs: True if the publishers of logs replace only the routing key, not the message.
        key_in_body: True if `emit-log direct` and `emit-log topic` put the routing key in front of the body.
        key_of_two_words: True if `emit-log topic` makes the routing key of the first two of three or more words.
        fib_of_negatives: True if the RPC server's fib() is 0 below 0; elsewhere such a request crashes the server.
        purges_requests: True if the RPC server purges its queue when it starts.
        on_stderr: True if the scripts print on stderr, as Go's log package does.
        emits_on_stdout: True if the publishers of logs print on stdout nevertheless.
        usage_topic: the arguments in the usage line of a receiver of topics.
        usage_code, usage_code_topic: the exit code of a receiver of logs without severities, or without patterns.
    """

    waiting = waiting_task = " [*] Waiting for messages. To exit press CTRL+C"
    waiting_log = waiting_log_with_key = " [*] Waiting for logs. To exit press CTRL+C"
    binding = binding_topic = ""
    sent = " [x] Sent '{body}'"
    sent_task = " [x] Sent {body}"
    sent_log = " [x] Sent {body}"
    sent_log_with_key = " [x] Sent {key}:{body}"
    received = " [x] Received {body}"
    received_task = ""
    log = " [x] {body}"
    log_with_key = " [x] {key}:{body}"
    done = " [x] Done"
    got = " [.] Got {body}"
    awaiting_requests = " [x] Awaiting RPC requests"
    requesting = " [x] Requesting fib({n})"
    awaiting_add100 = " [x] Awaiting RPC requests"
    answering_add100 = " [.] add100({n})"
    requesting_add100 = " [x] Requesting add100({n})"
    hello = b"Hello World!"
    task = b"Hello World!"
    fanout = b"info: Hello World!"
    routed = b"Hello World!"
    topic = "anonymous.info"
    number = number_add100 = "30"
    properties: ClassVar[Mapping[str, str]] = {}
    persistent_logs = False
    worker_prefetch = 1
    empty_text_is_missing = True
    empty_word_is_missing = False
    keeps_empty_logs = False
    key_in_body = False
    key_of_two_words = False
    fib_of_negatives = False
    purges_requests = False
    on_stderr = False
    emits_on_stdout = False
    usage_topic = "[binding_key]..."
    usage_code = usage_code_topic = 1


_PYTHON = DialectNames(
    hello=_quorum("hello"),
    task_queue=_quorum("task_queue"),
    rpc_queue=_quorum("rpc_queue"),
    fanout=Exchange("logs", "fanout"),
    direct=Exchange("direct_logs", "direct"),
    topic=Exchange("topic_logs", "topic"),
    headers=Exchange("headers_logs", "headers"),
    delay_exchange=DELAY_EXCHANGE,
    delay_queue=Queue("delay_queue", durable=True),
)
_PYTHON_CLASSIC = _PYTHON._replace(
    hello=Queue("hello"), task_queue=Queue("task_queue", durable=True), rpc_queue=Queue("rpc_queue")
)
_GO_CLASSIC = _PYTHON_CLASSIC._replace(
    fanout=Exchange("logs", "fanout", durable=True),
    direct=Exchange("logs_direct", "direct", durable=True),
    topic=Exchange("logs_topic", "topic", durable=True),
)
_PYTHON_ARTICLE = _PYTHON_CLASSIC._replace(task_queue=Queue("task", durable=True))
_GO_ARTICLE_2 = _GO_CLASSIC._replace(task_queue=_GO_CLASSIC.hello)
_JAVA_AMQP = _PYTHON._replace(
    fanout=Exchange("logs", "fanout", durable=True),
    direct=Exchange("direct_logs", "direct", durable=True),
    topic=Exchange("topic_logs", "topic", durable=True),
    headers=Exchange("headers_logs", "headers", durable=True),
)
#: For AMQP 1.0 without a dialect, because clients can declare only durable exchanges over AMQP 1.0.
AMQP10_NAMES = _JAVA_AMQP
_GO_AMQP = _JAVA_AMQP._replace(direct=_GO_CLASSIC.direct, topic=_GO_CLASSIC.topic)
NAMES = {
    Dialect.PYTHON: _PYTHON,
    Dialect.GO: _PYTHON._replace(direct=Exchange("logs_direct", "direct"), topic=Exchange("logs_topic", "topic")),
    Dialect.PYTHON_CLASSIC: _PYTHON_CLASSIC,
    Dialect.GO_CLASSIC: _GO_CLASSIC,
    Dialect.GO_ARTICLE: _GO_CLASSIC,
    Dialect.GO_ARTICLE_2: _GO_ARTICLE_2,
    Dialect.PYTHON_ARTICLE: _PYTHON_ARTICLE,
    Dialect.JAVA_AMQP: _JAVA_AMQP,
    Dialect.GO_AMQP: _GO_AMQP,
    Dialect.DOTNET_AMQP: _GO_AMQP,
}


class _GoLines(DialectLines):
    binding = "Binding queue {queue} to exchange logs_direct with routing key {key}"
    binding_topic = "Binding queue {queue} to exchange logs_topic with routing key {key}"
    sent = " [x] Sent {body}"
    sent_log_with_key = " [x] Sent {body}"
    received = "Received a message: {body}"
    log_with_key = " [x] {body}"
    done = "Done"
    awaiting_requests = " [*] Awaiting RPC requests"
    awaiting_add100 = " [*] Awaiting RPC req"
    answering_add100 = " [.] rpcFunc({n})\nserver rpc run..."
    requesting_add100 = "body== {n}"
    task = fanout = routed = b"hello"
    number_add100 = "0"
    properties: ClassVar[Mapping[str, str]] = {"content_type": "text/plain"}
    empty_word_is_missing = True
    on_stderr = True
    usage_code = usage_code_topic = 0


class _PythonClassicLines(DialectLines):
    sent_task = sent_log = " [x] Sent {body!r}"
    sent_log_with_key = " [x] Sent {key!r}:{body!r}"
    received = " [x] Received {body!r}"
    log = " [x] {body!r}"
    log_with_key = " [x] {key!r}:{body!r}"


class _PythonArticleLines(_PythonClassicLines):
    requesting = ""
    task = b"xcgj c01"
    number = "1"


class _GoArticleLines(_GoLines):
    waiting = ""
    waiting_task = " [*] Waiting for messages. To exit press CTRL + C"
    waiting_log = " [*] is running..."
    sent_log = sent_log_with_key = " [x] sent {body}"
    hello = b"Hello, RabbitMQ!"
    topic = "nil.nil"
    keeps_empty_logs = True
    key_in_body = key_of_two_words = True
    fib_of_negatives = True
    emits_on_stdout = True
    usage_code = 255


class _GoArticle2Lines(_GoLines):
    waiting = waiting_task = waiting_log = waiting_log_with_key = "[*] waiting for messages, to exit press ctrl+c"
    binding_topic = _GoLines.binding  # it names the other exchange
    sent = sent_task = sent_log = sent_log_with_key = "[x] sent {body} "
    received = "received a message:{body}"
    topic = "info"
    persistent_logs = True
    worker_prefetch = 0
    key_in_body = True
    usage_topic = "[info] [warning] [error]"


class _JavaAmqpLines(DialectLines):
    waiting_log = waiting_log_with_key = DialectLines.waiting
    sent_task = sent_log = " [x] Sent '{body}'"
    sent_log_with_key = " [x] Sent '{key}':'{body}'"
    received = log = " [x] Received '{body}'"
    log_with_key = " [x] Received '{key}':'{body}'"
    got = " [.] Got '{body}'"
    task = b""
    empty_text_is_missing = False
    purges_requests = True


class _GoAmqpLines(_GoLines):
    properties: ClassVar[Mapping[str, str]] = {}
    purges_requests = True


class _DotnetAmqpLines(_JavaAmqpLines):
    sent = " [x] Sent {body}"
    received = "Received a message: {body}"
    received_task = " [x] Received '{body}'"
    task = b"Hello World!"


LINES: dict[Dialect, DialectLines] = {
    Dialect.PYTHON: DialectLines(),
    Dialect.GO: _GoLines(),
    Dialect.PYTHON_CLASSIC: _PythonClassicLines(),
    Dialect.GO_CLASSIC: _GoLines(),
    Dialect.GO_ARTICLE: _GoArticleLines(),
    Dialect.GO_ARTICLE_2: _GoArticle2Lines(),
    Dialect.PYTHON_ARTICLE: _PythonArticleLines(),
    Dialect.JAVA_AMQP: _JavaAmqpLines(),
    Dialect.GO_AMQP: _GoAmqpLines(),
    Dialect.DOTNET_AMQP: _DotnetAmqpLines(),
}


def declaring_like(difference: Difference) -> list[Dialect]:
    """Return the dialects whose settings match an existing queue or exchange, as far as the difference tells.

    Dialects of single articles and of AMQP 1.0 tutorials are left out if others also match.
    """

    def is_like(thing: Queue | Exchange) -> bool:
        if thing.name != difference.name or difference.setting not in ("durable", "x-queue-type"):
            return False
        if difference.setting == "durable":
            return str(thing.durable).lower() == difference.theirs
        # The broker compares durability first. A queue declared without a type has "none"; from 4.0 on, "classic".
        theirs = "classic" if difference.theirs == "none" else difference.theirs
        return thing.durable and thing.arguments.get("x-queue-type", "classic") == theirs

    found = [dialect for dialect, names in NAMES.items() if any(is_like(thing) for thing in names)]
    return [dialect for dialect in found if not re.search("-amqp|-article", dialect)] or found
