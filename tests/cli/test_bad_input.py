"""Wrong command lines and input: one error in one sentence, at most one hint, and the documented exit code."""

import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from mqtool.amqp import Connection
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Result, Shell
from tests.cli.terminal import on_terminal

LONG = "n" * 256
SECRET = "s3cr3t-w0rd"
#: Seconds. "At once" is far less; a busy machine may need more.
AT_ONCE = 30.0


@dataclass(frozen=True)
class Case:
    """A command that cannot work.

    Attributes:
        command: the words after "mqtool". {host} stands for the broker's host and port; {quiet}, {http} and {closed}
            stand for those without a broker, see places().
        code: the exit code.
        says: what the error must contain.
        hint: what the hint must contain, if anything.
        also: patterns of the other lines on stderr: those of the tutorial, and the total.
    """

    command: str
    code: int
    says: str
    hint: str = ""
    stdin: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return self.command.split(" ")

    def __str__(self) -> str:
        variables = "".join(f"{name}={value} " for name, value in self.environment.items())
        return f"{variables}{self.command}".replace(LONG, "LONG")[:70] or "nothing"


#: These cannot work with any broker, so they must say so without contacting one.
COMMAND_LINE = [
    Case("ui --password-file -", 2, "the page's commands read the password again", "name a file"),
    # URLs.
    Case("send x -u http://localhost:15672", 2, "its scheme is 'http', not amqp or amqps", "AMQP's is 5672"),
    Case("send x -u localhost:port", 2, "'localhost:***': it has no scheme", "amqp://user:password@host"),
    Case("send x", 2, "AMQP_URL: bad broker URL 'foo://x'", "amqp://user", environment={"AMQP_URL": "foo://x"}),
    Case("emit-log topic {app}.x -l", 2, "contains {app}, but --key-pattern is missing", "(?P<app>"),
    Case("send x -u amqp:localhost", 2, "it has no scheme", "amqp://user:password@host"),
    Case("send x -u amqp://localhost:0", 2, "port must be between 1 and 65535"),
    Case("send x -u amqp://localhost:99999", 2, "port must be between 1 and 65535"),
    Case(f"send x -u amqp://me:{SECRET}@localhost:port", 2, "'amqp://me:***@localhost:port'", "write # as %23"),
    Case(f"send x -u amqp://me:{SECRET}#@localhost", 2, "port must be between 1", "write # as %23"),
    Case(f"send x -u amqp://me:{SECRET}/@localhost", 2, "port must be between 1", "/ as %2F"),
    Case(f"send x -u amqp://me:{SECRET}[@localhost", 2, "'amqp://me:***@localhost'"),
    Case(f"send x -u amqp://me:{SECRET}", 2, "'amqp://me:***'"),
    Case(f"send x -u http://me:{SECRET}@localhost", 2, "'http://me:***@localhost'"),
    Case(f"send x -u me:{SECRET}@localhost:port", 2, "'me:***@localhost:port'"),
    Case("send x -u ", 2, "the broker's URL is empty", "amqp://user:password@host"),
    Case("send x", 2, "its scheme is 'ftp'", environment={"MQTOOL_URL": "ftp://localhost"}),
    Case("send x -u amqp://localhost/#v", 2, "'#' starts a fragment", "write # as %23"),
    Case("send x -u amqp://localhost/?colour=red", 2, "unknown parameter 'colour'", "known are heartbeat"),
    Case("send x -u amqp://localhost/?heartbeat=soon", 2, "heartbeat is 'soon', not a whole number"),
    Case("send x -u amqp://localhost/?heartbeat=65536", 2, "heartbeat is 65536", "up to 65,535"),
    Case(
        "send x -u amqp://localhost/?connection_timeout=0", 2, "connection_timeout must be more than 0", "milliseconds"
    ),
    Case("send x -u amqp://one,two", 2, "its host contains a ','", "amqp://one,amqp://two"),
    Case(f"send x -u amqp://localhost/{LONG}", 2, "its vhost is longer than 255 bytes"),
    Case(f"send x --vhost {LONG}", 2, "the vhost name is 256 bytes long", "1 to 255 bytes"),
    Case("send x --user ", 2, "the user name is 0 bytes long", "1 to 255 bytes"),
    # Files.
    Case("send x --password-file nowhere", 2, "cannot read the password file nowhere: No such file"),
    Case("send x --password-file .", 2, "cannot read the password file .: Is a directory"),
    Case("send -f nowhere", 2, "cannot read nowhere: No such file or directory"),
    Case("send -l -f nowhere", 2, "cannot read nowhere: No such file or directory"),
    Case("send -f .", 2, "cannot read .: it is a directory"),
    Case("receive --ready-file nowhere/ready", 2, "cannot create the ready file nowhere/ready"),
    Case("send x -u amqps://localhost --tls-ca nowhere", 2, "cannot use the TLS files nowhere: No such file", "PEM"),
    Case("send x -u amqps://localhost --tls-key key", 2, "needs its certificate", "--tls-cert"),
    Case("send x -u amqp://localhost --tls-ca ca.pem", 2, "the broker's URL does not use TLS", "amqps://"),
    Case("send x -u amqp://localhost --tls-key key", 2, "the broker's URL does not use TLS", "amqps://"),
    Case("list queues -u amqp://localhost --tls-ca ca.pem", 2, "the broker's URL does not use TLS", "amqps://"),
    Case("list users --management http://localhost:1 --tls-ca ca.pem", 2, "does not use TLS", "amqps://"),
    # Settings of queues.
    Case(
        "receive -q there --queue-type clasic", 2, "'clasic' is not one of 'classic', 'quorum', 'stream'", "'classic'?"
    ),
    Case("queue declare ", 2, "the queue's name is empty", "hint: for example: mqtool queue declare jobs"),
    # Headers and properties.
    Case("send x -H nothing", 2, "'nothing' is not a header", "hint: mqtool send --header KEY=VALUE"),
    Case("send x -H =value", 2, "'=value' is not a header"),
    Case("send x -H key:=nojson", 2, "the value of 'key' is not JSON"),
    Case("queue declare q -a key:=" + "[" * 100_000, 2, "the value of 'key' is nested too deeply"),
    Case(
        "send x --property colour=red", 2, "'colour=red' is not a property", "hint: mqtool send --property NAME=VALUE"
    ),
    *(
        Case(f"{command}{digits}{unit}", 2, says)
        for digits in ("9" * 400, "9" * 5000)
        for command, unit, says in (
            ("send x --delay=", "s", "is too long"),
            ("send x --ttl=", "s", "is too long: at most 36500d"),
            ("send x --confirm-timeout=", "", "is too long: at most 36500d"),
            ("send-delayed x --delay=", "s", "is too long"),
            ("receive --timeout=", "s", "is too long: at most 36500d"),
            ("receive --idle-timeout=", "", "is too long: at most 36500d"),
            ("receive --offset=", "s", "is not an offset"),
            ("top --interval=", "", "is too long: at most 36500d"),
            ("bench --rate=", "", "is not a rate"),
            ("recording replay FILE --speed=", "", "is not a speed"),
            ("send x --property priority=", "", "priority must be a number from 0 to 255"),
            ("send x --property timestamp=", "", "timestamp must be seconds since 1970"),
            ("send x --property expiration=", "", "is not a number of milliseconds up to 315360000000"),
            ("send x --property expiration=", "s", "is too long: at most 36500d"),
            ("send x --max-length=", "", "--max-length"),
            ("queue declare q -a x-max-length=", "", "is larger than a signed 64-bit integer"),
            ("send x -u amqp://localhost/?heartbeat=", "", "not a whole number of up to 10 digits"),
            ("send x -u amqp://localhost/?connection_timeout=", "", "not a whole number of up to 10 digits"),
        )
    ),
    Case("send x --property headers=x", 2, "'headers=x' is not a property"),
    Case("send x --property priority=256", 2, "priority must be a number from 0 to 255, not '256'"),
    Case("send x --property delivery-mode=3", 2, "delivery-mode must be a number from 1 to 2, not '3'"),
    Case("send x --property expiration=soon", 2, "'soon' is not a duration"),
    Case("send x --property timestamp=yesterday", 2, "timestamp must be seconds since 1970 or RFC 3339"),
    Case(f"send x --property type={LONG}", 2, "type is longer than 255 bytes"),
    # What to publish.
    Case("send -l some words", 2, "the message 'some words' is on the command line", "use either message words"),
    Case("send -f . words", 2, "the message 'words' is on the command line", "use either message words"),
    Case("send -q jobs -e logs -r info x", 2, "--queue cannot be combined with --exchange", "-q QUEUE"),
    Case("send -q jobs -r info x", 2, "--queue cannot be combined with --exchange", "-q QUEUE"),
    Case("send -e logs --ttl 1m x", 2, "settings of a new queue cannot be combined", "queue declare"),
    Case("send -f one -f two", 2, "--file can be given only once", "only the last"),
    Case("send -lf one -ftwo", 2, "--file can be given only once", "only the last"),
    Case("receive -o one -o two", 2, "--output can be given only once", "only the last"),
    Case("move a --to b --where body=x --where body=y", 2, "--where can be given only once", "only the last"),
    Case("send -l -0", 2, "--lines, --null, --delimiter and --json cannot be combined", "only one"),
    Case("send --json -l", 2, "--lines, --null, --delimiter and --json cannot be combined", "only one"),
    Case("send -D ", 2, "--delimiter is empty", "leave it out"),
    Case("send x --confirm-timeout 0s", 2, "'0s' is not greater than 0"),
    Case("send x --confirm-timeout later", 2, "'later' is not a duration"),
    Case("emit-log topic {app} -l --key-pattern (", 2, "not a valid regular expression"),
    Case("emit-log topic {app} -l --key-pattern (?P<level>x)", 2, "the routing key contains {app}", "write (?P<app>…)"),
    Case("emit-log topic app -l --key-pattern (?P<app>x)", 2, "needs a routing key with {group} placeholders"),
    # What to receive, and how.
    Case("receive -c 0", 2, "--count: 0", "hint: mqtool receive --count 10"),
    Case("receive --messages 3", 2, "unknown option --messages", "hint: --count N"),
    Case("bench --messages none", 2, "--messages: 'none' is not a number"),
    Case("receive -c many", 2, "--count: 'many'"),
    Case("send x --ttl 5000", 2, "'5000' is not a duration such as 300ms, 5s, 2m or 1h30m: it has no unit"),
    Case("receive --timeout -5s", 2, "'-5s' is not a duration"),
    Case("receive --idle-timeout soon", 2, "--idle-timeout: 'soon' is not a duration"),
    Case("receive --prefetch -1", 2, "--prefetch: -1"),
    Case("receive --prefetch 65536", 2, "--prefetch: 65536"),
    Case("receive --format %z", 2, "unknown placeholder '%z' in --format", "'mqtool help output'"),
    Case(
        "receive --format json", 2, "--format 'json' has no placeholders, such as %s for the body", "for JSON: --json"
    ),
    Case("receive --format 100%", 2, "unknown placeholder '%' in --format", "'mqtool help output'"),
    Case("receive --raw --json", 2, "--raw, --json and --format cannot be combined", "only one"),
    Case("receive-log topic # --json --format %b", 2, "--raw, --json and --format cannot be combined"),
    Case("completion", 2, "Missing argument 'SHELL': one of bash, zsh, fish", 'eval "$(mqtool completion bash)"'),
    Case("receive-log direct", 2, "Missing argument 'SEVERITY...'", "for example: mqtool receive-log direct info"),
    Case("receive-log topic", 2, "Missing argument 'PATTERN...'", "all topics, with quotes: '#'"),
    Case("receive-log headers", 2, "receive-log headers needs a header", "receive-log headers format=pdf"),
    Case("receive-log headers pdf", 2, "'pdf' is not a header"),
    Case("receive-log headers a=b --match some", 2, "'some' is not one of 'all', 'any'"),
    Case("rpc-server --function sqrt", 2, "'sqrt' is not one of 'fib', 'add100'"),
    Case("rpc-client --timeout 0s", 2, "'0s' is not greater than 0"),
    Case("rpc-client abc", 2, "the request 'abc' is not a whole number of 0 or more", "use --text"),
    Case("rpc-client 1_0", 2, "the request '1_0' is not a whole number of 0 or more", "use --text"),
    Case("rpc-client +3", 2, "the request '+3' is not a whole number of 0 or more", "use --text"),
    Case("rpc-client ٣", 2, "the request '٣' is not a whole number of 0 or more", "use --text"),
    Case("rpc-client 30 -- -1", 2, "the request '-1' is not a whole number of 0 or more", "use --text"),
    Case("rpc-client 1.5 --function add100", 2, "the request '1.5' is not an integer", "use --text"),
    Case("publisher-confirms slowly", 2, "'slowly' is not one of 'individual', 'batch', 'async', 'all'"),
    Case("publisher-confirms batch --batch-size 0", 2, "--batch-size: 0"),
    # Mistyped names.
    Case("sned x", 2, "unknown command 'mqtool sned'", "did you mean 'mqtool send'?"),
    Case(
        "emit-log hello", 2, "unknown command 'mqtool emit-log hello'", "followed by fanout, direct, topic or headers"
    ),
    Case("emit-log fanut x", 2, "unknown command 'mqtool emit-log fanut'", "did you mean 'mqtool emit-log fanout'?"),
    Case("send --quee hello x", 2, "unknown option --quee", "did you mean '--queue'?"),
    Case("queue bind jobs logs", 2, "unknown command 'mqtool queue bind'", "did you mean 'mqtool exchange bind'?"),
    Case("broker list", 2, "unknown command 'mqtool broker list'", "did you mean 'mqtool broker ls'?"),
    Case("definitions list", 2, "unknown command 'mqtool definitions list'", "'mqtool definitions' is followed by"),
    Case("policy delete short", 2, "unknown command 'mqtool policy delete'", "did you mean 'mqtool policy clear'?"),
    Case("queue delete -jobs", 2, "unknown option -j", "put -- before it: mqtool queue delete -- -jobs"),
    Case("send -5", 2, "unknown option -5", "if it is not an option, put -- before it: mqtool send -- -5"),
    Case("send -q=jobs x", 2, "-q=… means a value that begins with =", "write -q QUEUE, or -q =QUEUE"),
    Case("send -q= x", 2, "-q=… means a value that begins with =", "write -q QUEUE, or -q =QUEUE"),
    Case("receive -vq=jobs", 2, "-q=… means a value that begins with =", "write -q QUEUE, or -q =QUEUE"),
    Case("queue purge jobs --yess", 2, "unknown option --yess", "'mqtool queue purge --help-all' lists the options"),
    Case("statuss", 2, "unknown command 'mqtool statuss'", "did you mean 'mqtool broker status'?"),
    Case("scrub seen.ndjson", 2, "unknown command 'mqtool scrub'", "did you mean 'mqtool recording scrub'?"),
    Case("replay seen.ndjson", 2, "unknown command 'mqtool replay'", "did you mean 'mqtool recording replay'?"),
    Case("declare jobs", 2, "unknown command 'mqtool declare'", "'mqtool queue declare' or 'mqtool exchange declare'?"),
    Case("wait -t 2s", 2, "unknown option -t", "did you mean '--timeout'?"),
    Case("send -t x", 2, "unknown option -t", "'mqtool send --help-all' lists the options"),
    Case("receive jobs", 2, "unexpected argument 'jobs'", "to name a queue: mqtool receive -q jobs"),
    Case("queue declare a durable=true", 2, "unexpected argument 'durable=true'", "for example: mqtool queue declare"),
    Case("receive jobs -u localhost:1", 2, "unexpected argument 'jobs'", "hint: to name a queue: -q jobs"),
    Case("receive a b", 2, "unexpected arguments 'a b'", "for example: mqtool receive"),
    Case("worker a", 2, "argument 'a'", "name a queue: mqtool worker -q a; to run a program: mqtool worker --exec a"),
    Case("worker -q jobs -- cat f", 2, "arguments 'cat f'", "to run a program: --exec 'cat f'"),
    Case("exchange declare fanout logs", 2, "exchange type 'logs'", "'mqtool exchange declare logs fanout'?"),
    Case("tap amq.default", 2, "only the broker's firehose shows the default exchange", "add --firehose"),
    Case("broker rm second", 2, "unexpected argument 'second'", "to name a broker: mqtool broker rm --name second"),
    Case("tap amq.topic --routing-key a", 2, "unknown option --routing-key", "it is an argument: mqtool tap"),
    Case("peek --queue jobs", 2, "unknown option --queue", "it is an argument: mqtool peek jobs"),
    Case("send -q", 2, "Option '-q' requires an argument", "hint: mqtool send -q QUEUE"),
    Case("list queues --watch", 2, "Option '--watch' requires an argument", "mqtool list queues --watch 5s"),
    Case("receive -c abc", 2, "'abc' is not a number", "hint: mqtool receive --count 10"),
    Case("receive --timeout", 2, "'--timeout' requires an argument", "hint: mqtool receive --timeout 5s"),
    Case("send --delay later", 2, "'later' is not a duration such as 300ms", "hint: mqtool send --delay 5s"),
    Case("drill restart-broker -c 3", 2, "mqtool: --count: 3", "hint: mqtool drill restart-broker --count 20"),
    Case("broker up --port x", 2, "'x' is not a number", "hint: mqtool broker up --port 5673"),
    Case("topology --format", 2, "requires an argument", "hint: --format is one of tree, mermaid, dot, json"),
    Case("topology --format x", 2, "'tree', 'mermaid', 'dot', 'json'", "hint: mqtool topology --format tree"),
    Case("broker up --kind", 2, "requires an argument", "hint: --kind is one of auto, docker, node, embedded"),
    Case("bench --ack", 2, "requires an argument", "hint: --ack is one of each, N, auto"),
    Case("receive --max-retries 3", 2, "unknown option --max-retries", "--max-reconnects N for connections"),
    Case("send x --dialect cobol", 2, "'cobol' is not one of 'python', 'go', 'python-classic', 'go-classic'"),
    Case("send x --dialect golang", 2, "'golang' is not one of 'python', 'go'", "hint: did you mean 'go'?"),
    Case("send x", 2, "'cobol' is not one of 'python'", environment={"MQTOOL_DIALECT": "cobol"}),
]

#: There is no AMQP broker at the address.
NO_BROKER = [
    Case("send x -u amqp://no-such-host.invalid", 69, "cannot find the host 'no-such-host.invalid'", "in --url"),
    Case("send x -u amqp://no..host", 69, "cannot find the host 'no..host'", "in --url"),
    Case("send x --protocol amqp1.0 -u amqp://no..host", 69, "cannot find the host 'no..host'", "in --url"),
    Case("send-stream x -u amqp://no..host", 69, "cannot find the host 'no..host'", "in --url"),
    Case("send x -u amqp://{closed}", 69, "no broker answers at {closed}: connection refused", "mqtool broker up"),
    Case("receive -u amqp://{closed}", 69, "no broker answers at {closed}: connection refused", "mqtool broker up"),
    Case("top --once -u amqp://{closed}", 69, "no broker answers at {closed}: connection refused", "mqtool broker up"),
    Case("doctor -u amqp://{closed}", 69, "no broker answers at {closed}: connection refused", "mqtool broker up"),
    Case(
        "doctor -u amqp://{closed} --management http://{closed}",
        69,
        "no broker answers at {closed}: connection refused",
    ),
    Case("topology -u amqp://{closed}", 69, "no broker answers at {closed}: connection refused", "mqtool broker up"),
    Case("send x -u amqp://{closed},amqp://{closed}", 69, "no broker answers at {closed}", "mqtool broker up"),
    Case("send x -u amqp://{closed} --wait 200ms", 124, "no broker within 0.2 s", "mqtool broker up"),
    Case("wait -u amqp://{closed} --timeout 200ms", 124, "no broker within 0.2 s", "mqtool broker up"),
    Case("send x -u amqp://{http}", 69, "{http} accepted the connection, but is not an AMQP 0-9-1 broker"),
    Case("send x -u amqp://{quiet}/?connection_timeout=500", 69, "{quiet} accepted the connection but did not answer"),
    Case("send x -u amqps://{quiet}/?connection_timeout=500", 69, "{quiet}"),
    Case("send x -u amqps://{http}", 69, "{http} does not speak TLS", "amqp:// for a plain port"),
]

#: AMQP cannot carry these values: the broker is running, but mqtool does not ask it.
UNSAYABLE = [
    Case(f"send x -q {LONG}", 2, "is 256 bytes long; AMQP allows 255", "it starts with 'nnn"),
    Case(f"receive -q {LONG}", 2, "is 256 bytes long; AMQP allows 255", "it starts with 'nnn"),
    Case(f"emit-log fanout x -e {LONG}", 2, "is 256 bytes long; AMQP allows 255"),
    Case(f"emit-log topic {LONG} x", 2, "the routing key is 256 bytes long; AMQP allows 255"),
    Case(f"receive-log topic {LONG}", 2, "is 256 bytes long; AMQP allows 255"),
    Case(f"send x -e amq.fanout -r {LONG}", 2, "the routing key is 256 bytes long; AMQP allows 255"),
    Case(f"send x -H {LONG}=1", 2, "is 256 bytes long; AMQP allows 255"),
    Case("send x -q caf\udce9", 2, "is not valid UTF-8", "only a message's body"),
    Case("send x -e amq.fanout -r caf\udce9", 2, "is not valid UTF-8", "only a message's body"),
    Case("send x -q ", 2, "the queue's name is empty", "leave --queue out"),
    Case("send x -H n:=99999999999999999999", 65, "out of range", "64 bits"),
]

#: The broker refuses these.
BROKER = [
    Case("send x -u amqps://{host}", 69, "{host} does not speak TLS", "amqp:// for a plain port"),
    Case(f"send x -u amqp://guest:{SECRET}@{{host}}", 77, "refused the login of user 'guest'", "--password-file"),
    Case(f"send x -u amqp://nobody:{SECRET}@{{host}}", 77, "refused the login of user 'nobody'", "--password-file"),
    Case("send x -u amqp://{host}/nowhere", 69, "cannot open vhost 'nowhere': vhost nowhere not found", "/%2F"),
    Case("send x -u amqp://{host}/no%2Fwhere", 69, "cannot open vhost 'no/where': vhost no/where not found", "/%2F"),
    Case("receive --vhost nowhere", 69, "cannot open vhost 'nowhere': vhost nowhere not found", "no vhost 'nowhere'"),
    # Names.
    Case("send x -q amq.mine", 77, "queue name 'amq.mine' contains reserved prefix", "choose another"),
    Case("emit-log fanout x -e amq.mine", 77, "exchange name 'amq.mine' contains reserved prefix", "choose another"),
    Case("emit-log fanout x -e ", 77, "not permitted on the default exchange", "mqtool send -q NAME"),
    # Values.
    Case("send x --property user-id=nobody", 65, "user_id property set to 'nobody'", "who logged in"),
    # Declarations.
    Case("receive --argument x-queue-type=nonsense", 2, "unsupported queue type 'nonsense'", "see --queue-type"),
    Case("receive --queue-type quorum --transient", 2, "invalid property 'non-durable'", "see --queue-type"),
    Case("send x --argument x-max-length=many", 2, "invalid arg 'x-max-length' for queue 'hello'", "--argument"),
    Case("send x -q there --strict", 78, "inequivalent arg", "another --dialect may match it"),
    Case("send x -q timeout --strict", 78, "inequivalent arg", "another --dialect may match it"),
    Case("receive -q there --strict", 78, "inequivalent arg", "another --dialect may match it"),
    Case("emit-log fanout x -e a-topic-exchange", 78, "inequivalent arg 'type' for exchange", "routes differently"),
    Case("receive-log fanout -e a-topic-exchange", 78, "inequivalent arg 'type' for exchange", "routes differently"),
    # Publishing.
    Case("send x -e nowhere", 69, "no exchange 'nowhere' in vhost", "check the name"),
    Case("list queues --vhost nowhere", 69, "does not exist, or user 'guest' has no permissions in it", "list vhosts"),
    Case("send -e amq.default -r jobs x", 69, "no exchange 'amq.default'", "'mqtool send -q QUEUE' publishes to it"),
    Case("tap nowhere", 69, "exchange 'nowhere' does not exist in vhost", "'mqtool list exchanges' shows them"),
    Case("route nowhere key", 69, "exchange 'nowhere' does not exist in vhost", "'mqtool list exchanges' shows them"),
    Case("send x -e amq.direct -r nobody --mandatory", 75, "the message was returned: NO_ROUTE", "no queue is bound"),
    *[
        Case(
            f"rpc-client {what}", 69, f"queue '{queue}' does not exist", "rpc-server", also=(f".* Requesting {shown}",)
        )
        for what, queue, shown in (
            ("5", "rpc_queue", r"fib\(5\)"),
            ("--text a", "rpc_queue", "'a'"),
            ("-q its a", "its", "'a'"),
            ("-q its a --function add100", "its", r"add100\(a\)"),
        )
    ],
]

SUM = r"{} confirmed in (less than 0.1 s|[\d.]+ s \([\d,.]+/s\))"
GOOD = '{"body": "first"}\n\n{"body": "second"}\n'

#: Invalid lines after two valid messages, which are still delivered. The empty line is counted as a line.
NDJSON = [
    Case("send --json", 65, "line 4, column 1, is not JSON: ", 'looks like {"body": "Hello"}', "nonsense"),
    Case("send --json", 65, "line 4, column 10, is not JSON: ", 'looks like {"body": "Hello"}', '{"body": "cut off'),
    Case("send --json", 65, "line 4 is not a JSON object", 'looks like {"body": "Hello"}', "[1]"),
    Case("send --json", 65, 'line 4 needs either "body" or "body_base64"', "", "{}"),
    Case("send --json", 65, 'line 4 needs either "body" or "body_base64"', "", '{"body": "", "body_base64": ""}'),
    Case("send --json", 65, 'line 4 has a "body" that is not text: 5', "", '{"body": 5}'),
    Case("send --json", 65, '"body" that is not text: {"k": 2}', "write it as a string", '{"body": {"k": 2}}'),
    Case("send --json", 65, 'line 4 has a "body_base64" that is not base64', "", '{"body_base64": "%"}'),
    Case("send --json", 65, "line 4 has an unknown key 'bodi'", "one of at, body", '{"bodi": "x"}'),
    Case("send --json", 65, "line 4 has an unknown property 'colour'", "", '{"body": "", "properties": {"colour": 1}}'),
    Case("send --json", 65, "line 4 has a property 'priority'", "", '{"body": "", "properties": {"priority": 300}}'),
    *(Case("send --json", 65, f'"expiration" that is not a number of milliseconds up to 315360000000: {it!r}', "",
           json.dumps({"body": "", "properties": {"expiration": it}}))
      for it in ("-1", "315360000001", "1m", "5 ", "")),
    *(Case("send --json", 65, f"line 4 has a header with a bad {kind}", "",
           json.dumps({"body": "", "headers": {"a": {kind: it}}}))
      for kind, it in {"$encoded": "Rv////8=", "$table": 1}.items()),
    *(Case("send --json", 65, "line 4 cannot be sent: a number in a header, a property or an argument is out of range",
           "AMQP's integers have 64 bits", json.dumps({"body": "", "headers": {"a": it}}))
      for it in (1 << 64, {"$timestamp": -1}, {"$decimal": "1E999999999"}, {"$decimal": "7" * 5000})),
    Case("send --json", 65, "line 4 cannot be sent: a name, a key or a header is not valid UTF-8", "any bytes",
         r'{"body": "", "properties": {"type": "\ud800"}}'),
    Case("send --json", 65, "line 4 cannot be sent: a delay of", "at most", '{"body": "", "delay": "60d"}'),
    Case("send --json", 65, "is too long: at most 36500d", "", '{"body": "", "delay": "' + "9" * 400 + 's"}'),
    Case("send --json", 65, "line 4 cannot be sent: the headers and properties are 131,", "move what is large into",
         json.dumps({"body": "", "headers": {"a": "x" * 131_072}})),
    Case("send --json", 65, 'line 4 has an "at" that is not a time', "",
         '{"body": "", "at": "9999-12-31T23:59:59-10:00"}'),
    Case("send --json", 65, "a header with a bad $bytes", "", '{"body": "", "headers": {"a": {"$bytes": 1}}}'),
]  # fmt: skip


def check(case: Case, result: Result, places: dict[str, str]) -> None:
    """Assert the exit code, the error and the hint of a case."""

    def placed(text: str) -> str:
        for place, value in places.items():
            text = text.replace(f"{{{place}}}", value)
        return text

    lines = result.stderr.splitlines()
    sentences = [line for line in lines if line.startswith("mqtool: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    others = [line for line in lines if line not in sentences + hints]
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stderr
    assert SECRET[:4] not in result.stderr
    assert result.code == case.code, result.stderr
    assert result.stdout == ""
    assert len(sentences) == 1, result.stderr
    assert len(hints) <= 1
    assert placed(case.says) in sentences[0]
    assert case.hint in "".join(hints)
    assert len(others) == len(case.also), result.stderr
    for line, pattern in zip(others, case.also, strict=True):
        assert re.fullmatch(pattern, line)


def run(case: Case, shell: Shell, places: dict[str, str]) -> None:
    arguments = list(case.arguments)
    for place, value in places.items():
        arguments = [argument.replace(f"{{{place}}}", value) for argument in arguments]
    result = shell.run("mqtool", *arguments, timeout=AT_ONCE, environment=case.environment)
    check(case, result, places)


@pytest.mark.parametrize("case", COMMAND_LINE, ids=str)
@pytest.mark.sampled(15)
def test_a_wrong_command_line_is_a_usage_error(lonely_shell: Shell, case: Case) -> None:
    """If an option or a value on the command line is wrong, mqtool reports this in one sentence, and exits with 2
    without contacting a broker.
    """
    run(case, lonely_shell, {})


class _Silent(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while self.request.recv(1024):
            pass


class _Web(socketserver.BaseRequestHandler):
    """A server that answers like a web server to anything that is not HTTP."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """Ports without a broker: one speaks HTTP, one accepts connections and stays silent, and one is closed."""
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Silent) as quiet,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Web) as web,
        closing(socket.create_server(("127.0.0.1", 0))) as bound,
    ):
        quiet.daemon_threads = web.daemon_threads = True
        for server in (quiet, web):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        ports = {"quiet": quiet.server_address[1], "http": web.server_address[1], "closed": bound.getsockname()[1]}
        bound.close()
        yield {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        quiet.shutdown()
        web.shutdown()


@pytest.mark.parametrize("case", NO_BROKER, ids=str)
@pytest.mark.sampled(5)
def test_an_error_says_why_no_broker_answers_at_an_address(
    lonely_shell: Shell, places: dict[str, str], case: Case
) -> None:
    """If no AMQP broker answers at the address, the command says why: for example, the host is unknown, the port is
    closed, a web server answers, or the server does not use TLS.
    """
    run(case, lonely_shell, places)


@on_any_broker
@pytest.mark.parametrize("case", UNSAYABLE, ids=str)
@pytest.mark.sampled(4)
def test_mqtool_rejects_names_and_headers_that_amqp_cannot_carry(shell: Shell, broker: TestBroker, case: Case) -> None:
    """If AMQP cannot carry a name or a header, such as a queue name of 256 bytes, mqtool itself rejects it, and says
    why in one sentence.
    """
    run(case, shell, {"host": f"localhost:{broker.port}"})


@pytest.mark.parametrize("case", BROKER, ids=str)
@pytest.mark.sampled(4)
def test_a_refusal_by_the_broker_is_reported_in_one_sentence(
    shell: Shell, broker: TestBroker, connection: Connection, case: Case
) -> None:
    """If the broker refuses an operation, the command prints the broker's reason in one sentence, and exits with the
    documented exit code.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    channel = connection.channel()
    channel.declare(Queue("there", auto_delete=True))
    channel.declare(Queue("timeout", auto_delete=True))
    channel.declare(Exchange("a-topic-exchange", "topic"))

    run(case, shell, {"host": f"localhost:{broker.port}"})


@on_any_broker
@pytest.mark.parametrize("case", NDJSON, ids=lambda case: case.stdin[:40])
@pytest.mark.sampled(3)
def test_an_invalid_line_of_ndjson_is_reported_and_ends_the_input(shell: Shell, case: Case) -> None:
    """`send --json` reports the number of an invalid line and exits with 65; the messages before that line are
    delivered, and those after it are not sent.
    """
    sent = shell.run("mqtool", *case.arguments, stdin=f"{GOOD}{case.stdin}\n" + '{"body": "after"}\n', timeout=AT_ONCE)
    received = shell.run("mqtool", "receive", "--raw", "-c", "2", "--timeout", "5s")

    check(Case(case.command, case.code, case.says, case.hint, also=(SUM.format(2),)), sent, {})
    assert received.stdout == "first\nsecond\n"


@on_any_broker
def test_an_invalid_header_on_the_command_line_is_not_blamed_on_a_line_of_input(shell: Shell) -> None:
    """If a header given with -H is not valid UTF-8, `send --json` exits with 2, and does not mention a line of its
    input.
    """
    result = shell.run("mqtool", "send", "--json", "-H", r'a:="\ud800"', stdin='{"body": ""}\n')

    assert (result.code, "line 1" in result.stderr) == (2, False), result.stderr
    assert "a name, a key or a header is not valid UTF-8" in result.stderr


def test_the_first_ten_unroutable_messages_are_reported_and_all_are_counted(shell: Shell) -> None:
    """If none of 12 lines can be routed, `send --mandatory` prints a warning for each of the first ten, counts all 12
    in its total, and exits with 75.
    """
    stdin = "".join(f"line {number}\n" for number in range(12))

    result = shell.run("mqtool", "send", "-l", "-e", "amq.direct", "-r", "nobody", "--mandatory", stdin=stdin)

    *named, more, total, sentence, hint = result.stderr.splitlines()
    assert named == [f"warning: returned: 'line {number}': NO_ROUTE (312)" for number in range(10)]
    assert more == "warning: further failures are only counted"
    assert total.startswith("0 confirmed, 12 returned in ")
    assert sentence == "mqtool: no queue received any of the 12 messages"
    assert hint == "hint: 'mqtool topology' shows which queues are bound"
    assert (result.stdout, result.code) == ("", 75)


def test_send_exits_with_3_if_some_messages_are_unroutable(shell: Shell) -> None:
    """If the broker returns one of two messages, `send --mandatory` says "1 of 2 messages failed" and exits with 3."""
    stdin = '{"body": "lost", "routing_key": "nobody"}\n{"body": "kept"}\n'

    result = shell.run("mqtool", "send", "--json", "--mandatory", stdin=stdin)

    assert result.stderr.splitlines()[0] == "warning: returned: 'lost': NO_ROUTE (312)"
    assert result.stderr.splitlines()[-1] == "mqtool: 1 of 2 messages failed"
    assert (result.stdout, result.code) == ("", 3)


def test_debug_output_does_not_contain_the_password(shell: Shell, broker: TestBroker) -> None:
    """If the password is wrong, `send --debug` prints pika's log, but not the password."""
    result = shell.run("mqtool", "send", "--debug", "-u", f"amqp://guest:{SECRET}@localhost:{broker.port}", "x")

    assert result.code == 77
    assert "pika" in result.stderr
    assert SECRET not in result.stderr


def test_send_on_a_terminal_names_the_address_that_does_not_answer(lonely_shell: Shell) -> None:
    """If a server accepts the connection but does not answer, `send` on a terminal first says which address it is
    waiting for, and prints an error once the connection timeout is over. Without a terminal, `send` prints only the
    error.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        send = ("mqtool", "send", "x", "-u", f"amqp://{at}/?connection_timeout=1000")
        shown = on_terminal(lonely_shell, *send, is_silent=True).stdout
        piped = lonely_shell.run(*send).stderr
    assert shown.startswith(f"waiting for an answer from amqp://guest@{at}\r\n")
    assert "mqtool: " in shown
    assert piped.startswith("mqtool: ")
