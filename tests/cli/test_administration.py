"""Commands that create, change and delete queues, exchanges, bindings, users, permissions, virtual
hosts and plugins.
"""

import json
import re
import socket
import uuid
from collections.abc import Iterator

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker, depth, free_port, large, on_any_broker, own_broker
from tests.cli.shell import Result, Shell, wait_until
from tests.cli.terminal import on_terminal

pytestmark = pytest.mark.own_vhost("statistics of what an earlier test has deleted may linger")

SECRET = "s3cret-of-ann"


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell in which MQTOOL_MANAGEMENT_URL names the broker's management API."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


@pytest.fixture
def ann(admin: Shell) -> Iterator[str]:
    """The name of a new user; the file `secret` contains the password."""
    name = f"ann-{uuid.uuid4().hex[:8]}"
    (admin.directory / "secret").write_text(f"{SECRET}\n")
    assert admin.run("mqtool", "user", "add", name, "--password-file", "secret").code == 0
    yield name
    admin.run("mqtool", "user", "delete", name, "--if-exists", "--yes")


def said(result: Result) -> tuple[int, str]:
    return result.code, result.stderr.splitlines()[0]


def test_queue_commands_declare_purge_and_delete_a_queue(admin: Shell, broker: TestBroker) -> None:
    """`queue declare` declares a queue, and also exits with 0 if the same queue already exists. If the queue exists
    with other arguments, the command exits with 78. `queue purge --yes` empties a queue, and `queue delete --yes`
    deletes it; without a terminal and without --yes, both exit with 2.
    """
    queue = ("mqtool", "queue")
    assert said(admin.run(*queue, "declare", "jobs", "--max-length", "9")) == (0, "declared queue 'jobs'")
    assert said(admin.run(*queue, "declare", "jobs", "--max-length", "9")) == (0, "queue 'jobs' exists")
    assert admin.run(*queue, "declare", "jobs", "--max-length", "8").code == 78
    assert admin.run(*queue, "declare", "jobs", "--max-length", "8", "--if-not-exists").code == 0
    admin.run("mqtool", "send", "-q", "jobs", "--max-length", "9", "-l", stdin="a\nb\n")

    for destroying in (["purge", "jobs"], ["delete", "jobs"]):
        refused = admin.run(*queue, *destroying)
        assert refused.code == 2
        assert "pass --yes" in refused.stderr
    assert depth(broker, "jobs") == 2
    assert said(admin.run(*queue, "purge", "jobs", "--yes")) == (0, "removed 2 messages from queue 'jobs'")
    assert said(admin.run(*queue, "delete", "jobs", "--yes")) == (0, "deleted queue 'jobs', with 0 messages")
    assert said(admin.run(*queue, "delete", "jobs", "--yes")) == (
        69,
        f"mqtool: queue 'jobs' does not exist in vhost {broker.vhost!r}",
    )
    assert admin.run(*queue, "delete", "jobs", "hello", "--if-exists", "--yes").code == 0
    assert admin.run(*queue, "purge", "jobs", "--if-exists", "--yes").code == 0


@pytest.mark.parametrize(
    "command",
    [
        "peek jbos",
        "move jbos --to other",
        "move other --to jbos",
        "dlq show jbos",
        "dlq drop jbos --yes",
        "queue show jbos",
        "queue delete jbos --yes",
        "queue purge other jbos --yes",
        "exchange delete jbos --yes",
    ],
)
@pytest.mark.sampled(3)
def test_the_hint_for_a_missing_queue_or_exchange_suggests_a_similar_name(
    admin: Shell, connection: Connection, command: str
) -> None:
    """If a command names a queue or exchange that does not exist, the command fails, and its hint suggests the existing
    queue or exchange with the most similar name.
    """
    channel = connection.channel()
    for name in ("jobs", "jobs.dlq", "other"):
        channel.declare(Queue(name, durable=True))
    channel.declare(Exchange("jobs", "fanout"))
    missing = admin.run_for_hint("hint: did you mean", "mqtool", *command.split())
    assert (missing.code, missing.stdout) == (3 if "other jbos" in command else 69, "")
    assert re.search(r"(queue|exchange) 'jbos(\.dlq)?' does not exist", missing.stderr)
    assert "hint: did you mean 'jobs'? Otherwise, " in missing.stderr


@on_any_broker
def test_queue_declare_refuses_a_name_with_a_line_break(admin: Shell) -> None:
    """`queue declare` exits with 2 if the name contains a line break, because RabbitMQ would silently remove the line
    break.
    """
    wrong = admin.run("mqtool", "queue", "declare", "a\nb")
    assert wrong.code == 2
    assert "line break" in wrong.stderr


def test_queue_declare_declares_the_same_queue_as_send(admin: Shell) -> None:
    """`queue declare` gives a queue the same arguments as `send` does, so a later `send --strict` accepts the queue."""
    admin.run("mqtool", "queue", "declare", "jobs")
    assert admin.run("mqtool", "send", "-q", "jobs", "--strict", "x").code == 0


@pytest.mark.parametrize("command", ["queue delete", "queue purge", "exchange delete"])
@pytest.mark.sampled(1)
def test_delete_and_purge_of_several_names_stop_at_a_missing_name(admin: Shell, command: str) -> None:
    """`queue delete`, `queue purge` and `exchange delete` accept several names, and stop at the first name that does
    not exist. If this missing name is the first one given, the command exits with 69. Otherwise, it exits with 3, says
    how many queues or exchanges it has deleted or purged, and lists the missing name and the names after it.
    """
    kind, verb = command.split()
    for name in ("one", "two"):
        admin.run("mqtool", kind, "declare", name, *(["fanout"] if kind == "exchange" else []))
    failed = admin.run("mqtool", kind, verb, "one", "gone", "two", "--yes")
    assert failed.code == 3
    assert f"{kind} 'gone' does not exist" in failed.stderr
    assert f"; {verb}d: 1 of 3, not 'gone', 'two'\n" in failed.stderr
    assert "two" in admin.run("mqtool", "list", f"{kind}s", "name").stdout.split()
    nothing_done = admin.run("mqtool", kind, verb, "gone", "two", "--yes")
    assert (nothing_done.code, "not 'gone'" in nothing_done.stderr) == (69, False)


def test_queue_delete_if_empty_and_unused_keeps_a_classic_queue_with_messages(admin: Shell, broker: TestBroker) -> None:
    """`queue delete --if-empty --if-unused` exits with 1 and keeps a classic queue that has messages; once the queue is
    empty, the command deletes the queue.
    """
    admin.run("mqtool", "send", "-q", "old", "--queue-type", "classic", "x")
    kept = admin.run("mqtool", "queue", "delete", "old", "--if-empty", "--if-unused")
    assert kept.code == 1
    assert "queue 'old' was not deleted" in kept.stderr
    assert depth(broker, "old") == 1
    admin.run("mqtool", "queue", "purge", "old", "--yes")
    assert admin.run("mqtool", "queue", "delete", "old", "--if-empty", "--if-unused").code == 0


def test_queue_delete_if_empty_and_unused_asks_before_it_deletes_an_unacknowledged_message(
    admin: Shell, broker: TestBroker
) -> None:
    """RabbitMQ treats a queue as empty while a client holds the queue's last message unacknowledged, and would delete
    this message with the queue. `queue delete --if-empty --if-unused` therefore asks for confirmation. Without a
    terminal, it exits with 2 and keeps the queue and the message, unless --yes is given.
    """
    delete = ("mqtool", "queue", "delete", "old", "--if-empty", "--if-unused")
    admin.run("mqtool", "send", "-q", "old", "--queue-type", "classic", "x")
    with Connection(parse_addresses(broker.url)) as client:
        client.channel().get("old")
        refused = admin.run(*delete)
        answered = on_terminal(admin, *delete, keys=["n\n"], cue="[y/N]", columns=200).stdout
    assert refused.code == 2
    assert "warning: 1 message of 'old' is unacknowledged, and would be lost\n" in refused.stderr
    assert refused.stderr.endswith(
        "mqtool: this would delete queue 'old' with its unacknowledged messages\n"
        "hint: pass --yes, or stop the clients, then: mqtool queue delete --if-empty --if-unused old\n"
    )
    assert "delete queue 'old' with its unacknowledged messages? [y/N]" in answered
    wait_until(lambda: depth(broker, "old") == 1, "the message to be requeued")
    with Connection(parse_addresses(broker.url)) as client:
        client.channel().get("old")
        assert admin.run(*delete, "--yes").code == 0


def test_queue_delete_if_empty_and_unused_asks_before_it_deletes_without_the_management_api(shell: Shell) -> None:
    """Without the management API, mqtool cannot know whether messages are unacknowledged. `queue delete --if-empty
    --if-unused` then asks for confirmation before it deletes an empty queue. Without a terminal, it exits with 2
    unless --yes is given.
    """
    shell.run("mqtool", "queue", "declare", "old", "--queue-type", "classic")
    delete = ("mqtool", "queue", "delete", "old", "--if-empty", "--if-unused", "--management", "http://127.0.0.1:1")
    refused = shell.run(*delete)
    assert refused.code == 2
    assert "warning: " in refused.stderr
    assert "this would delete queue 'old' with its unacknowledged messages\nhint: pass --yes, or " in refused.stderr
    deleted = shell.run(*delete, "--yes")
    assert (deleted.code, deleted.stderr) == (0, "deleted queue 'old', with 0 messages\n")


@large
def test_exchange_commands_bind_unbind_and_delete_exchanges(admin: Shell, broker: TestBroker) -> None:
    """`exchange bind` binds a headers exchange to a topic exchange, and a queue to the headers exchange. A message
    published to the topic exchange then reaches the queue only if both bindings match. After `exchange unbind`, no
    further message reaches the queue. `exchange delete --yes` deletes an exchange, and exits with 69 if it does not
    exist.
    """
    assert admin.run("mqtool", "exchange", "declare", "in", "topic").code == 0
    assert admin.run("mqtool", "exchange", "declare", "in", "fanout").code == 78
    assert admin.run("mqtool", "exchange", "declare", "by-header", "headers").code == 0
    assert admin.run("mqtool", "queue", "declare", "jobs").code == 0
    assert admin.run("mqtool", "exchange", "bind", "in", "by-header", "kern.*", "auth.#", "--to-exchange").code == 0
    headers = ("-H", "format=pdf", "-H", "type=log", "--match", "any")
    assert admin.run("mqtool", "exchange", "bind", "by-header", "jobs", *headers).code == 0
    assert admin.run("mqtool", "exchange", "bind", "by-header", "jobs", *headers).code == 0, (
        "binding again changes nothing"
    )
    send = ("mqtool", "emit-log", "topic", "-e", "in", "--durable")
    admin.run(*send, "kern.info", "-H", "format=pdf", "taken")
    admin.run(*send, "kern.info", "-H", "format=txt", "other header")
    admin.run(*send, "mail.info", "-H", "format=pdf", "other key")
    assert depth(broker, "jobs") == 1

    assert admin.run("mqtool", "exchange", "unbind", "by-header", "jobs", *headers).code == 0
    admin.run(*send, "kern.info", "-H", "format=pdf", "too late")
    assert depth(broker, "jobs") == 1
    assert admin.run("mqtool", "exchange", "bind", "none", "jobs").code == 69
    keyless = admin.run("mqtool", "exchange", "bind", "in", "jobs")
    assert keyless.stderr == "bound queue 'jobs' to exchange 'in' with an empty key\n"
    assert admin.run("mqtool", "exchange", "unbind", "in", "by-header", "auth.#", "--to-exchange").code == 0

    assert admin.run("mqtool", "exchange", "delete", "in").code == 2
    assert said(admin.run("mqtool", "exchange", "delete", "in", "--if-unused"))[0] == 1
    assert admin.run("mqtool", "exchange", "delete", "in", "by-header", "--yes").code == 0
    assert admin.run("mqtool", "exchange", "delete", "in", "--yes").code == 69
    assert admin.run("mqtool", "exchange", "delete", "in", "--if-exists", "--yes").code == 0
    assert admin.run("mqtool", "exchange", "delete", "amq.topic", "--yes").code == 77


@large
@pytest.mark.parametrize("to_exchange", [False, True])
def test_exchange_unbind_says_whether_it_removed_a_binding(admin: Shell, *, to_exchange: bool) -> None:
    """`exchange unbind` exits with 0, whether it removed a binding or found none, and says which. It also says whether
    the queue or exchange is still bound with the same key but other arguments. `n:=1` and `n:=true` are different
    arguments. Without the management API, the command says only that there is no such binding now.
    """
    admin.run("mqtool", "queue", "declare", "jobs")
    admin.run("mqtool", "exchange", "declare", "jobs", "fanout")
    between = ("amq.headers", "jobs", "red", "-H", "n:=1", *["--to-exchange"] * to_exchange)
    what = "exchange 'jobs'" if to_exchange else "queue 'jobs'"

    def unbound(*words: str) -> tuple[int, str]:
        result = admin.run("mqtool", "exchange", "unbind", *words)
        return result.code, result.stderr

    to = "to exchange 'amq.headers' with key 'red'\n"
    assert admin.run("mqtool", "exchange", "bind", *between).code == 0
    for other in (("-H", "m=2"), ("-H", "n:=true")):
        assert unbound(*between, *other) == (0, f"{what} is still bound with other arguments {to}")
    assert admin.run("mqtool", "exchange", "bind", *between, "-H", "m=2").code == 0
    assert unbound(*between, "-H", "m=2") == (
        0,
        f"{what} is no longer bound with these arguments, but with others, {to}",
    )
    assert unbound(*between) == (0, f"{what} is no longer bound {to}")
    assert unbound(*between) == (0, f"{what} was not bound {to}")
    assert unbound("amq.direct", "jobs") == (0, "queue 'jobs' was not bound to exchange 'amq.direct'\n")
    admin.environment["MQTOOL_MANAGEMENT_URL"] = "http://localhost:1"
    assert unbound(*between) == (0, f"{what} is now not bound {to[:-1]} and these arguments\n")


@pytest.mark.parametrize("name", ["hello", "jobs"])
def test_no_declare_needs_no_permission_to_configure(admin: Shell, ann: str, name: str) -> None:
    """With --no-declare, a user who has the write and read permissions for an existing queue, but not the configure
    permission, can send to the queue and receive from it. This is also true of a tutorial's default queue, such as
    `hello`.
    """
    admin.run("mqtool", "queue", "declare", name)
    admin.run("mqtool", "permission", "set", ann, "--configure", "^ann-", "--write", ".*", "--read", ".*")
    to = ("-q", name, "--no-declare", "--user", ann, "--password-file", "secret")
    sent = admin.run("mqtool", "send", *to, "x")
    assert sent.code == 0, sent.stderr
    received = admin.run("mqtool", "receive", *to, "-c", "1", "--raw")
    assert (received.code, received.stdout) == (0, "x\n"), received.stderr


def test_receive_log_with_no_declare_needs_no_configure_permission(admin: Shell, ann: str) -> None:
    """With --no-declare, `receive-log -q QUEUE` can receive from an existing exchange and queue even if the user
    lacks the configure permission for them.
    """
    admin.run("mqtool", "receive-log", "fanout", "-q", "all-logs", "--idle-timeout", "10ms")
    admin.run("mqtool", "permission", "set", ann, "--configure", "^ann-", "--write", ".*", "--read", ".*")
    login = ("--user", ann, "--password-file", "secret")
    receive = ("mqtool", "receive-log", "fanout", "-q", "all-logs", "--idle-timeout", "10ms", *login)
    assert admin.run(*receive).code == 77
    received = admin.run(*receive, "--no-declare")
    assert received.code == 0, received.stderr


def test_a_misspelled_tag_is_set_with_a_warning(admin: Shell, ann: str) -> None:
    """RabbitMQ accepts any string as a user's tag. If a tag is probably misspelled, such as `managment`, `user tags`
    sets it, but warns that this tag has no effect, and suggests the correct one.
    """
    tagged = admin.run("mqtool", "user", "tags", ann, "managment")
    assert tagged.code == 0, tagged.stderr
    assert "the tag 'managment' has no effect; did you mean 'management'?" in tagged.stderr


def test_an_error_from_the_management_api_contains_no_html_escapes(admin: Shell) -> None:
    """The error messages of RabbitMQ's management API can contain HTML escapes, such as `&quot;`. mqtool prints these
    messages as plain text.
    """
    policy = ("--pattern", "^x", "--apply-to", "queues", "--definition", '{"max-lenght": 10}')
    refused = admin.run("mqtool", "policy", "set", "limits", *policy)
    assert (refused.code, "max-lenght" in refused.stderr, "&" in refused.stderr) == (2, True, False), refused.stderr


@large
def test_a_user_can_do_only_what_the_permission_patterns_allow(admin: Shell, ann: str) -> None:
    """After `permission set`, a user can configure, write to and read from the queues and exchanges whose names match
    the given patterns. A command for which the user lacks a permission exits with 77.
    """

    def as_ann(*words: str) -> int:
        return admin.run(*words, "--user", ann, "--password-file", "secret").code

    for queue in ("ann-jobs", "bob-jobs", "open"):
        admin.run("mqtool", "queue", "declare", queue)
    assert as_ann("mqtool", "send", "-q", "open", "x") == 77, "no permissions yet, not even to connect"

    patterns = ("--configure", "^ann-", "--write", "^ann-", "--read", "^(ann-|open$)")
    assert admin.run("mqtool", "permission", "set", ann, *patterns).code == 0
    assert as_ann("mqtool", "queue", "declare", "ann-new") == 0
    assert as_ann("mqtool", "queue", "declare", "bob-new") == 77
    assert as_ann("mqtool", "exchange", "declare", "ann-x", "fanout") == 0
    assert as_ann("mqtool", "exchange", "declare", "x", "fanout") == 77
    assert as_ann("mqtool", "queue", "delete", "ann-new", "--yes") == 0
    assert as_ann("mqtool", "queue", "delete", "bob-jobs", "--yes") == 77
    assert as_ann("mqtool", "exchange", "bind", "ann-x", "ann-jobs") == 0
    assert as_ann("mqtool", "exchange", "bind", "ann-x", "open") == 77, "binding a queue needs write permission on it"
    assert as_ann("mqtool", "exchange", "bind", "amq.fanout", "ann-jobs") == 77, "and read permission on the exchange"
    assert as_ann("mqtool", "emit-log", "fanout", "-e", "ann-x", "--durable", "hello") == 0
    assert as_ann("mqtool", "send", "-q", "ann-jobs", "x") == 77, "patterns call the default exchange amq.default"
    assert as_ann("mqtool", "receive", "-q", "ann-jobs", "-c", "1") == 0
    assert as_ann("mqtool", "queue", "purge", "open", "--yes") == 0
    assert as_ann("mqtool", "queue", "purge", "bob-jobs", "--yes") == 77

    # Options that are not given change nothing: she may now write everywhere, and configure the same as before.
    assert admin.run("mqtool", "permission", "set", ann, "--write", ".*").code == 0
    assert as_ann("mqtool", "send", "-q", "ann-jobs", "x") == 0
    assert as_ann("mqtool", "exchange", "bind", "ann-x", "open") == 0
    assert as_ann("mqtool", "queue", "declare", "bob-new") == 77
    assert admin.run("mqtool", "permission", "clear", ann).code == 0
    assert as_ann("mqtool", "queue", "declare", "ann-new") == 77


@pytest.mark.parametrize("way", ["queue", "user", "name"])
def test_connection_close_closes_the_connections_of_a_client(
    admin: Shell, ann: str, broker: TestBroker, way: str
) -> None:
    """`connection close` closes a connection by its name, those of a user, or those that consume from a queue. The
    client connects again.
    """
    admin.run("mqtool", "permission", "set", ann, "--configure", ".*", "--write", ".*", "--read", ".*")
    receiver = admin.start("mqtool", "receive", "-q", "jobs", "--user", ann, "--password-file", "secret")
    receiver.wait_until_ready()

    def names() -> list[str]:
        listed = admin.run("mqtool", "list", "consumers", "connection", "--where", f"user='{ann}'")
        return listed.stdout.splitlines()

    wait_until(names, "its consumer in the list")
    which = {"queue": ["--queue", "jobs"], "user": ["--of-user", ann], "name": names()}[way]
    closed = admin.run("mqtool", "connection", "close", "--yes", *which)
    assert closed.code == 0, closed.stderr
    assert closed.stderr.startswith("closed ")
    receiver.wait_until_connected_again(1)
    gone = admin.run("mqtool", "connection", "close", "--yes", "nobody's")
    assert said(gone) == (69, 'mqtool: connection "nobody\'s" does not exist')


def test_user_commands_add_change_and_delete_a_user(admin: Shell, ann: str) -> None:
    """`user password` changes a user's password and keeps the tags; `user tags` changes the tags and keeps the
    password. `user delete` deletes the user. `user add` for an existing user exits with 1, and `user delete` for a
    missing user with 69.
    """
    assert said(admin.run("mqtool", "user", "add", ann, "--password-file", "secret"))[0] == 1
    assert admin.run("mqtool", "user", "add", ann, "--if-not-exists").code == 0
    assert admin.run("mqtool", "user", "tags", ann, "monitoring", "policymaker").code == 0
    assert admin.run("mqtool", "user", "password", ann, "--password-file", "-", stdin="other\n").code == 0
    listed = admin.run("mqtool", "list", "users", "--where", f"user={ann}").stdout
    assert sorted(listed.strip().partition("\t")[2].split(",")) == ["monitoring", "policymaker"]
    admin.run("mqtool", "permission", "set", ann, "--configure", "", "--write", "", "--read", "")
    (admin.directory / "secret").write_text("other")
    assert admin.run("mqtool", "list", "queues", "--user", ann, "--password-file", "secret").code == 0
    assert admin.run("mqtool", "user", "tags", ann, "--none").code == 0
    assert admin.run("mqtool", "wait", "--user", ann, "--password-file", "secret").code == 0
    assert admin.run("mqtool", "list", "queues", "--user", ann, "--password-file", "secret").code == 77

    assert admin.run("mqtool", "user", "delete", ann).code == 2
    assert admin.run("mqtool", "user", "delete", ann, "--yes").code == 0
    assert admin.run("mqtool", "user", "delete", ann, "--yes").code == 69
    assert admin.run("mqtool", "user", "delete", ann, "--if-exists", "--yes").code == 0
    assert admin.run("mqtool", "user", "tags", ann, "management").code == 69
    assert admin.run("mqtool", "permission", "set", ann, "--read", ".*").code == 69


def test_user_tags_without_a_tag_shows_the_tags(admin: Shell, ann: str) -> None:
    """`user tags USER` shows the user's tags, and changes nothing. `user tags USER --none` removes all tags."""
    tags = ("mqtool", "user", "tags", ann)
    assert admin.run(*tags).stdout == f"user {ann!r} has no tags\n"
    assert admin.run(*tags, "monitoring", "policymaker").code == 0
    shown = f"user {ann!r} has the tags monitoring, policymaker\n"
    assert [admin.run(*tags).stdout for _ in range(2)] == [shown, shown]
    assert admin.run(*tags, "--none", "management").code == 2
    assert said(admin.run(*tags, "--none")) == (0, f"user {ann!r} has no tags")
    assert admin.run(*tags).stdout == f"user {ann!r} has no tags\n"


def test_user_tags_ignores_spaces_around_tags(admin: Shell, ann: str) -> None:
    """`user tags` also accepts the tags as one argument, separated by commas. As in RabbitMQ, spaces around the commas
    are not part of a tag. If administrators set their own tags to `foo , administrator ,`, they stay administrators,
    and the command does not ask for confirmation.
    """
    tags = ("mqtool", "user", "tags", ann)
    shown = f"user {ann!r} has the tags foo, administrator"
    assert said(admin.run(*tags, "foo, administrator")) == (0, shown)
    assert admin.run(*tags).stdout == f"{shown}\n"
    own = admin.run(*tags, "--user", ann, "--password-file", "secret", "foo , administrator ,")
    assert said(own) == (0, shown)


@pytest.mark.parametrize("new", ["management", "--none"])
@pytest.mark.once_on_rabbitmq
def test_user_tags_asks_before_administrators_remove_their_own_tag(admin: Shell, ann: str, new: str) -> None:
    """Administrators who have removed their own tag `administrator` cannot restore it. `user tags` therefore asks for
    confirmation before it removes this tag. Without a terminal, it exits with 2 and keeps the tag unless --yes is
    given.
    """
    assert said(admin.run("mqtool", "user", "tags", ann, "administrator")) == (
        0,
        f"user {ann!r} has the tag administrator",
    )
    as_ann = ("mqtool", "user", "tags", ann, "--user", ann, "--password-file", "secret")
    refused = admin.run(*as_ann, new)
    assert said(refused) == (2, "mqtool: this would remove your own tag 'administrator'")
    assert "pass --yes" in refused.stderr
    assert admin.run(*as_ann).stdout == f"user {ann!r} has the tag administrator\n"
    assert admin.run(*as_ann, new, "--yes").code == 0
    assert admin.run(*as_ann).code == 77


@on_any_broker
def test_invalid_user_and_permission_commands_are_usage_errors(admin: Shell, ann: str) -> None:
    """`user add` exits with 2 if the password is missing or empty, or if the management API cannot accept the user's
    name, such as `..`. `permission set` exits with 2 if no permission is given, or if a pattern is not a valid regular
    expression. The error says what is wrong.
    """
    (admin.directory / "empty").write_text("\n")
    for words, sentence in {
        ("user", "add", "bob"): "no password for bob, and no terminal to ask for it",
        ("user", "add", "bob", "--password-file", "empty"): "the password is empty",
        ("user", "add", "bob", "--password-file", "none"): "cannot read the password file none",
        ("user", "add", "..", "--password-file", "secret"): "does not accept the name '..'",
        ("permission", "set", ann): "no permission given",
        ("permission", "set", ann, "--read", "("): "'(' is not a valid regular expression",
        ("permission", "set", ann, "--read", "a", "--write", "*"): "'*' is not a valid regular expression",
    }.items():
        wrong = admin.run("mqtool", *words)
        assert wrong.code == 2, words
        assert sentence in wrong.stderr


def test_the_hint_for_a_missing_permission_or_tag_says_how_to_grant_it(admin: Shell, ann: str) -> None:
    """If the user lacks a permission, `queue declare` exits with 77. If the user lacks the required tag, `list queues`
    and `list users` exit with 77. The hint says how an administrator can grant the permission or set the tag. The hint
    about a permission contains no complete command, because that command would replace the user's existing permissions.
    """
    as_ann = ("--user", ann, "--password-file", "secret")
    assert admin.run("mqtool", "permission", "set", ann, "--configure", "^mine$").code == 0
    refused = admin.run("mqtool", "queue", "declare", "jobs", *as_ann)
    assert refused.code == 77
    assert f"hint: an administrator can grant it to user {ann!r} with --" in refused.stderr
    assert refused.stderr.endswith(" of 'mqtool permission set'; a new pattern replaces the old one\n")
    refused = admin.run("mqtool", "list", "queues", *as_ann)
    assert refused.code == 77
    assert f"; as an administrator: mqtool user tags {ann} management\n" in refused.stderr
    assert admin.run("mqtool", "user", "tags", ann, "management").code == 0
    refused = admin.run("mqtool", "list", "users", *as_ann)
    assert refused.code == 77
    assert "the user needs the tag 'administrator'; an administrator can set its tags" in refused.stderr


@on_any_broker
def test_user_password_does_not_print_the_password_and_user_add_has_no_option_for_it(admin: Shell, ann: str) -> None:
    """`user password` does not print the new password, even with --debug. `user add` has no option to give a password
    on the command line.
    """
    result = admin.run("mqtool", "user", "password", ann, "--password-file", "secret", "--debug")
    assert result.code == 0
    assert SECRET not in result.stdout + result.stderr
    helped = admin.run("mqtool", "user", "add", "--help").stdout
    assert "--password-file" in helped
    assert "--password " not in helped


@on_any_broker
def test_user_password_on_a_terminal_asks_twice_for_the_password(admin: Shell, ann: str) -> None:
    """On a terminal, `user password` asks for the new password twice, and does not show what is typed."""
    keys = ["typed-secret\n"] * 2
    typed = on_terminal(admin, "mqtool", "user", "password", ann, keys=keys, cue=": ").stdout
    assert "Password of" in typed
    assert "changed the password" in typed
    assert "typed-secret" not in typed
    (admin.directory / "secret").write_text("typed-secret")
    admin.run("mqtool", "permission", "set", ann, "--read", "")
    assert admin.run("mqtool", "wait", "--user", ann, "--password-file", "secret").code == 0


def test_messages_can_be_sent_to_a_virtual_host_until_it_is_deleted(admin: Shell, broker: TestBroker) -> None:
    """Messages can be sent to a virtual host after `vhost add`. After `vhost delete`, `send` exits with 69. Without a
    terminal, `vhost delete` exits with 2 unless --yes is given.
    """
    name = f"stage-{uuid.uuid4().hex[:8]}"
    vhost = ("mqtool", "vhost")
    assert admin.run(*vhost, "add", name, "--description", "to try").code == 0
    assert admin.run(*vhost, "add", name).code == 1
    assert admin.run(*vhost, "add", name, "--if-not-exists").code == 0
    listed = admin.run("mqtool", "list", "vhosts", "name", "description", "--where", f"name={name}").stdout
    assert listed == f"{name}\tto try\n"
    assert admin.run("mqtool", "send", "--vhost", name, "x").code == 0
    assert admin.run(*vhost, "delete", name).code == 2
    assert admin.run(*vhost, "delete", name, "--yes").code == 0
    assert admin.run(*vhost, "delete", name, "--yes").code == 69
    assert admin.run(*vhost, "delete", name, "--if-exists", "--yes").code == 0
    assert admin.run("mqtool", "send", "--vhost", name, "x").code == 69


def test_plugins_of_the_embedded_broker_cannot_be_changed(lonely_shell: Shell) -> None:
    """The embedded broker always has the same plugins. `plugin disable` therefore exits with 2. `plugin enable` exits
    with 0 for a plugin that this broker has, and with 2 for any other.
    """
    lonely_shell.environment["XDG_STATE_HOME"] = str(lonely_shell.directory)
    assert lonely_shell.run("mqtool", "plugin", "enable", "rabbitmq_shovel").code == 69
    up = lonely_shell.run("mqtool", "broker", "up", "--kind", "embedded", "--port", str(free_port()))
    assert up.code == 0, up.stderr
    try:
        assert lonely_shell.run("mqtool", "plugin", "enable", "rabbitmq_management").code == 0
        unknown = lonely_shell.run("mqtool", "plugin", "enable", "rabbitmq_shovel")
        assert unknown.code == 2
        assert "has no plugin 'rabbitmq_shovel'" in unknown.stderr
        assert lonely_shell.run("mqtool", "plugin", "disable", "rabbitmq_management").code == 2
        assert lonely_shell.run("mqtool", "plugin", "disable", "rabbitmq_management", "--yes").code == 2
    finally:
        lonely_shell.run("mqtool", "broker", "down")


def test_plugin_commands_act_on_the_broker_that_an_option_or_a_variable_names_or_refuse(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """`plugin enable` and `plugin disable` act on the broker that -u, MQTOOL_URL or a context names, not on the one
    that `broker up` started by default. If mqtool did not start that broker, they refuse, and the hint is the
    command to run on its machine.
    """
    shell, management = lonely_shell, "rabbitmq_management"
    directory = str(shell.directory)
    shell.environment |= {"XDG_STATE_HOME": directory, "XDG_CONFIG_HOME": directory}
    ports = {name: str(free_port()) for name in ("default", "second")}
    for name, port in ports.items():
        assert shell.run(*f"mqtool broker up --kind embedded --in-memory --port {port} --name {name}".split()).code == 0
    url = f"amqp://127.0.0.1:{ports['second']}"
    assert shell.run("mqtool", "context", "add", "own", "--url", url).code == 0
    assert shell.run("mqtool", "context", "add", "other", "--url", broker.url).code == 0
    try:
        for variables, words, expected in (
            ({}, "", "default"),
            ({}, f"-u {url}", "second"),
            ({}, "-C own", "second"),
            ({"MQTOOL_URL": url}, "", "second"),
            ({"AMQP_URL": url}, "", "second"),
            ({"MQTOOL_CONTEXT": "own"}, "", "second"),
            ({"MQTOOL_URL": broker.url}, "--name second", "second"),
            ({"MQTOOL_URL": broker.url}, "", 69),
            ({"AMQP_URL": broker.url}, "", 69),
            ({"MQTOOL_CONTEXT": "other"}, "", 69),
            ({}, f"-u {broker.url}", 69),
            ({}, "-C other", 69),
            ({}, f"-u {url} --name second", 2),
        ):
            shell.environment |= variables
            done = shell.run("mqtool", "plugin", "enable", management, *words.split())
            for variable in variables:
                del shell.environment[variable]
            if isinstance(expected, str):
                said = f"enabled {management} on broker {expected!r} at amqp://guest@127.0.0.1:{ports[expected]}\n"
                assert (done.stderr, done.code) == (said, 0), (variables, words)
            else:
                assert (done.code, "enabled" in done.stderr) == (expected, False), (variables, words)
                assert expected == 2 or f"rabbitmq-plugins enable {management}\n" in done.stderr
        refused = shell.run("mqtool", "plugin", "disable", "xxx", "--yes", "-u", broker.url)
        assert refused.stderr.endswith("hint: run on the broker's machine: rabbitmq-plugins disable xxx\n")
    finally:
        for name in ports:
            shell.run("mqtool", "broker", "down", "--name", name)


def test_an_enabled_plugin_is_listed_immediately_and_after_a_restart(lonely_shell: Shell) -> None:
    """`list plugins` shows a plugin as running as soon as `plugin enable` has returned, and again after `broker
    restart`.
    """
    own_broker(BrokerKind.NODE)
    lonely_shell.environment["XDG_STATE_HOME"] = str(lonely_shell.directory)
    lonely_shell.run("mqtool", "broker", "up", "--kind", "node", "--port", str(free_port()))

    def listed() -> str:
        return lonely_shell.run(
            "mqtool", "list", "plugins", "name", "running", "--where", "name=rabbitmq_shovel"
        ).stdout

    try:
        assert listed() == ""
        enabled = lonely_shell.run("mqtool", "plugin", "enable", "rabbitmq_shovel")
        assert enabled.stderr.startswith("enabled rabbitmq_shovel on broker 'default' at amqp://")
        assert listed() == "rabbitmq_shovel\ttrue\n"
        restarted = lonely_shell.run("mqtool", "broker", "restart")
        assert restarted.code == 0, restarted.stderr
        wait_until(lambda: listed() == "rabbitmq_shovel\ttrue\n", "the plugin to run")
        lonely_shell.run("mqtool", "plugin", "disable", "rabbitmq_shovel", "--yes")
        assert listed() == ""
    finally:
        lonely_shell.run("mqtool", "broker", "down")


def test_list_shovels_and_doctor_show_shovels_that_do_not_work(lonely_shell: Shell) -> None:
    """Without the plugin, `list shovels` says how to enable it. With it, `list shovels` shows the state of shovels, and
    `doctor` reports one that cannot log in, and one that is terminated because its connection was closed. `list
    parameters` shows how they are configured. No command prints the password.
    """
    own_broker(BrokerKind.NODE)
    shell, port = lonely_shell, free_port()
    shell.environment["XDG_STATE_HOME"] = str(shell.directory)
    shell.run("mqtool", "broker", "up", "--kind", "node", "--port", str(port))
    node = TestBroker("rabbitmq", f"amqp://127.0.0.1:{port}", f"http://127.0.0.1:{port + 10_000}")
    try:
        missing = shell.run("mqtool", "list", "shovels")
        assert missing.code == 69
        enable = "mqtool plugin enable rabbitmq_shovel_management"
        assert f"hint: {enable}, or on the broker's machine: rabbitmq-plugins" in missing.stderr
        assert shell.run(*enable.split()).code == 0
        for name, to in (("cut", "amqp://"), ("refused", f"amqp://guest:s3cr3t@127.0.0.1:{port}")):
            value = {"src-uri": "amqp://", "src-queue": "jobs", "dest-uri": to, "dest-queue": "done"}
            node.api("PUT", f"parameters/shovel/%2F/{name}", {"value": {**value, "reconnect-delay": 600}})

        def shown() -> str:
            return shell.run("mqtool", "list", "shovels", "name", "type", "state", "--sort", "name").stdout

        refused = "refused\tdynamic\tstarting\n"
        wait_until(lambda: shown() == f"cut\tdynamic\trunning\n{refused}", shown)

        def is_cut() -> bool:  # once the list has the shovel's connections
            for connection in shell.run("mqtool", "list", "connections", "name").stdout.splitlines():
                shell.run("mqtool", "connection", "close", connection, "--yes")
            return shown() == f"cut\tdynamic\tterminated\n{refused}"

        wait_until(is_cut, shown)
        found = shell.run("mqtool", "doctor", "--between", "500ms")
        assert found.code == 3
        assert "shovel 'cut' is terminated" in found.stdout
        assert "shovel 'refused' is still starting: it has not connected to both ends" in found.stdout
        configured = shell.run("mqtool", "list", "parameters", "--json")
        assert sorted(json.loads(line)["name"] for line in configured.stdout.splitlines()) == ["cut", "refused"]
        listed = shell.run("mqtool", "list", "shovels", "--json").stdout
        assert "s3cr3t" not in found.stdout + configured.stdout + listed
    finally:
        shell.run("mqtool", "broker", "down")


@on_any_broker
def test_ctrl_c_before_exchange_unbind_has_changed_anything_keeps_the_binding(admin: Shell) -> None:
    """`exchange unbind` first reads the bindings from the management API. If the API does not answer, Ctrl-C ends the
    command immediately with exit code 130, and the binding is kept.
    """
    admin.run("mqtool", "queue", "declare", "jobs")
    admin.run("mqtool", "exchange", "bind", "amq.direct", "jobs", "red")
    address = admin.environment["MQTOOL_MANAGEMENT_URL"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        admin.environment["MQTOOL_MANAGEMENT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        unbind = admin.start("mqtool", "exchange", "unbind", "amq.direct", "jobs", "red")
        connection, _ = silent.accept()
        with connection:
            unbind.interrupt()
            assert unbind.wait().code == 130
    admin.environment["MQTOOL_MANAGEMENT_URL"] = address
    assert "red\n" in admin.run("mqtool", "list", "bindings", "routing_key").stdout


@on_any_broker
@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
@pytest.mark.parametrize("command", ["queue delete jobs", "queue purge jobs"])
def test_ctrl_c_or_ctrl_d_at_a_confirmation_prompt_changes_nothing(
    admin: Shell, broker: TestBroker, command: str, key: str
) -> None:
    """Ctrl-C or Ctrl-D at the confirmation prompt of `queue delete` or `queue purge` ends the command with exit code
    130. Nothing is changed, and the command says so on a new line.
    """
    admin.run("mqtool", "send", "-q", "jobs", "x")
    asked = on_terminal(admin, "mqtool", *command.split(), keys=[key], cue="[y/N]: ")
    assert asked.code == 130
    assert re.sub(r"\x1b\[[0-9;]*m", "", asked.stdout).splitlines()[-1] == "mqtool: nothing was changed"
    assert depth(broker, "jobs") == 1


@on_any_broker
def test_queue_delete_after_ctrl_c_at_the_second_prompt_names_the_queue_that_is_left(
    admin: Shell, broker: TestBroker
) -> None:
    """`queue delete` with two queues asks about each of them. If the user answers yes for the first queue and presses
    Ctrl-C at the second prompt, the command exits with 130, says that one of the two queues was deleted, and names the
    queue that was not deleted.
    """
    admin.run("mqtool", "send", "-q", "jobs", "x")
    admin.run("mqtool", "queue", "declare", "other")
    keys = ["y\n", "\x03"]
    asked = on_terminal(admin, "mqtool", "queue", "delete", "other", "jobs", keys=keys, cue="[y/N]: ")
    assert (asked.code, "deleted: 1 of 2, not 'jobs'" in asked.stdout) == (130, True), asked.stdout
    assert admin.run("mqtool", "list", "queues", "name").stdout == "jobs\n"
    assert depth(broker, "jobs") == 1


@on_any_broker
def test_queue_delete_keeps_a_queue_if_the_answer_is_no(admin: Shell, broker: TestBroker) -> None:
    """On a terminal, `queue delete` asks before it deletes each queue. If the answer is no, this queue and its messages
    are kept.
    """
    admin.run("mqtool", "send", "-q", "jobs", "x")
    asked = on_terminal(admin, "mqtool", "queue", "delete", "jobs", keys=["n\n"], cue="[y/N]").stdout
    assert "delete queue 'jobs' with 1 message? [y/N]" in asked
    assert "nothing was changed" in asked
    assert depth(broker, "jobs") == 1
    admin.run("mqtool", "queue", "declare", "other")
    asked_twice = on_terminal(admin, "mqtool", "queue", "delete", "other", "jobs", keys=["y\n", "n\n"], cue="[y/N]")
    assert (asked_twice.code, "you declined; deleted: 1 of 2, not 'jobs'" in asked_twice.stdout) == (3, True)
    assert depth(broker, "jobs") == 1


@on_any_broker
def test_deleting_the_current_user_or_the_default_vhost_needs_an_extra_option(shell: Shell, broker: TestBroker) -> None:
    """`user delete` needs --myself to delete the user who is logged in, and `vhost delete /` needs --default-vhost.
    Without these options, both exit with 2, even with --yes, and the hint names the option.
    """
    management = ("--yes", "--management", broker.management)
    for words, flag in ((("user", "delete", "guest"), "--myself"), (("vhost", "delete", "/"), "--default-vhost")):
        refused = shell.run("mqtool", *words, *management)
        assert (refused.code, refused.stdout) == (2, "")
        assert f"hint: {flag} deletes it" in refused.stderr
    assert "guest" in shell.run("mqtool", "list", "users", "--management", broker.management).stdout
