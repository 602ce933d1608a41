"""The broker is stopped or killed while messages flow, and comes back. `send` and `receive` resume and lose nothing."""

import uuid
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from mqtool.broker.choice import BrokerKind
from tests.brokers import IN_CI, Restartable, free_port, large, own_broker, weekly
from tests.cli.shell import IDLE, Shell, wait_until

LINES = 40_000 if IN_CI else 10_000


@pytest.fixture(params=[BrokerKind.EMBEDDED, BrokerKind.NODE])
def restartable(request: pytest.FixtureRequest) -> Iterator[Restartable]:
    own_broker(request.param)
    broker = Restartable(request.param, f"restart-{uuid.uuid4().hex[:8]}")
    yield broker
    broker.stop()


# If RabbitMQ 3.10 is killed just after a quorum queue was declared, the queue never has a leader again ("leader not
# known"), with any client; so the queue is classic if the broker is killed.
@pytest.mark.parametrize(
    ("how", "queue"), [("stop", []), ("kill", ["-q", "lines", "--queue-type", "classic"])], ids=["stop", "kill"]
)
@pytest.mark.sampled(1)
def test_send_and_receive_resume_after_a_restart_of_the_broker(
    restartable: Restartable, lonely_shell: Shell, how: str, queue: list[str]
) -> None:
    """If the broker is stopped or killed while `send -l` and `receive` run, both resume once the broker is back, and
    every line is received at least once.
    """
    lives_through_it(restartable, lonely_shell, how, queue)


@weekly
@large
def test_broker_restart_waits_until_a_quorum_queue_reports_its_messages(lonely_shell: Shell) -> None:
    """After RabbitMQ starts, a quorum queue appears to be empty until it has read its log. `broker restart` exits only
    once the queue reports its messages, so that the next command sees all of them.
    """
    own_broker(BrokerKind.NODE)
    shell = lonely_shell
    assert shell.run("mqtool", "broker", "up", "--kind", "node", "--port", str(free_port())).code == 0
    try:
        sent = shell.run("mqtool", "send", "-q", "jobs", "--queue-type", "quorum", "-l", stdin="x\n" * 200_000)
        assert sent.code == 0, sent.stderr
        for _ in range(3):
            assert shell.run("mqtool", "broker", "restart").code == 0
            asked = shell.run("mqtool", "queue", "delete", "jobs")
            assert "delete queue 'jobs' with 200,000 messages" in asked.stderr
    finally:
        shell.run("mqtool", "broker", "down")


@large
def test_a_restart_enforces_a_lowered_max_length_on_a_classic_queue_that_rejects_publishes(
    restartable: Restartable, lonely_shell: Shell
) -> None:
    """If a policy lowers the maximum length of a classic queue with the overflow setting `reject-publish` below the
    number of its messages, `policy set` warns how many of them a restart will drop or dead-letter. When RabbitMQ
    restarts, the queue drops or dead-letters its oldest messages until the maximum is met. A quorum queue keeps all its
    messages.
    """
    shell = lonely_shell
    shell.environment["MQTOOL_URL"] = restartable.url
    rejects = ("--persistent", "--argument", "x-overflow=reject-publish", "--queue-type")
    dead = ("--dead-letter-exchange", "", "--argument", "x-dead-letter-routing-key=dead")
    shell.run("mqtool", "queue", "declare", "dead", "--queue-type", "classic")
    for queue, *kind in (("jobs", "classic"), ("jobs-dead", "classic", *dead), ("jobs-quorum", "quorum")):
        sent = shell.run("mqtool", "send", "-q", queue, *rejects, *kind, "-l", stdin="1\n2\n3\n4\n")
        assert sent.code == 0, sent.stderr
    limit = ("--pattern", "^jobs", "--definition", '{"max-length": 1}')
    done = shell.run("mqtool", "policy", "set", "limit", *limit, "--yes")
    assert done.code == 0, done.stderr
    assert sorted(line for line in done.stderr.splitlines() if line.startswith("warning: ")) == [
        "warning: queue 'jobs' drops 3 of 4 messages when RabbitMQ restarts: max-length is 1",
        "warning: queue 'jobs-dead' dead-letters 3 of 4 messages when RabbitMQ restarts: max-length is 1 "
        "(quorum queues may not get these dead letters)",
    ]

    restartable.stop()
    restartable.start()

    left = (("jobs", "4"), ("jobs-dead", "4"), ("jobs-quorum", "1 2 3 4"), ("dead", "1 2 3"))
    for queue, bodies in left:
        receive = ("mqtool", "receive", "--raw", "-q", queue, "-c", str(len(bodies.split())))
        assert shell.run(*receive).stdout.split() == bodies.split(), queue
        assert shell.run(*receive, "--idle-timeout", IDLE).stdout == "", queue


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.sampled(1)
@large
def test_send_and_receive_resume_after_a_restart_over_amqp_1_0(lonely_shell: Shell, how: str) -> None:
    """If the broker is stopped or killed while `send -l` and `receive` run over AMQP 1.0, both resume once the broker
    is back, and every line is received at least once.
    """
    broker = Restartable(BrokerKind.EMBEDDED, f"restart-{uuid.uuid4().hex[:8]}", like="4.3")
    lonely_shell.environment["MQTOOL_PROTOCOL"] = "amqp1.0"
    try:
        lives_through_it(broker, lonely_shell, how, [], lines=LINES // 4)
    finally:
        broker.stop()


def lives_through_it(restartable: Restartable, shell: Shell, how: str, queue: list[str], lines: int = LINES) -> None:
    shell.environment["MQTOOL_URL"] = restartable.url
    receiver = shell.start("mqtool", "receive", "--raw", *queue).wait_until_ready()
    sender = shell.start("mqtool", "send", "-l", "--persistent", *queue, stdin=PIPE)
    assert sender.process.stdin is not None
    for number in range(lines):
        sender.process.stdin.write(b"%d\n" % number)
        if number == lines // 2:
            sender.process.stdin.flush()
            wait_until(lambda: receiver.stdout.count("\n") > 100, "100 received lines")
            getattr(restartable, how)()
            sender.wait_for_stderr("lost the connection")
            restartable.start()
    sender.process.stdin.close()

    sent = sender.wait()
    assert sent.code == 0, sent.stderr
    assert "connected again" in sent.stderr
    assert f"{lines:,} confirmed in " in sent.stderr

    def missing() -> list[int]:
        return sorted({*range(lines)} - {int(line) for line in receiver.stdout.split("\n")[:-1]})

    wait_until(lambda: not missing(), lambda: f"every line is received: {receiver.stderr}, without {missing()[:20]}")
    assert receiver.interrupt().wait().code == 0
