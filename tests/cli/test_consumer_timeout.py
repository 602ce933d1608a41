"""A `worker` whose program runs longer than the broker's consumer timeout."""

from collections.abc import Iterator

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import impatient_node
from tests.cli.shell import Shell, wait_until


@pytest.fixture(params=["embedded", "rabbitmq"])
def impatient(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a broker with a consumer timeout of two seconds."""
    if request.param == "embedded":
        with EmbeddedBroker(consumer_timeout=2.0) as embedded:
            yield embedded.url
    else:
        with impatient_node(2000) as url:
            yield url


def test_worker_names_the_consumer_timeout_and_continues(impatient: str, lonely_shell: Shell) -> None:
    """If the program that `worker` runs takes longer than the broker's consumer timeout, `worker` reports the timeout,
    reopens the channel, and handles the message again when the broker redelivers it.
    """
    shell = lonely_shell
    shell.environment["MQTOOL_URL"] = impatient
    shell.run("mqtool", "send", "-q", "jobs", "job")
    program = "cat; echo .$MQ_REDELIVERED; [ $MQ_REDELIVERED = 1 ] || until [ -e ended ]; do sleep 0.1; done"
    two = ["--concurrency", "2"]  # so that the second run need not wait for the first, which is too long again
    worker = shell.start(
        "mqtool", "worker", "--declare", "-q", "jobs", *two, "--shell", "--exec", program
    ).wait_until_ready()
    worker.wait_for_stdout("job.1")
    (shell.directory / "ended").touch()
    worker.wait_for_stderr("the delivery was lost").interrupt()
    result = worker.wait()

    assert result.code == 0
    assert "not acknowledged within the broker's consumer timeout of 2s; another consumer gets it" in result.stderr
    assert "opened the channel again" in result.stderr
    assert "the delivery was lost while the program ran: the broker delivers the message again" in result.stderr
    assert "1 done, 0 retries, 0 dead" in result.stderr
    assert result.stdout.startswith("job.0\n")


def test_worker_consumes_again_after_rabbitmq_4_3_has_cancelled_its_consumer(lonely_shell: Shell) -> None:
    """From RabbitMQ 4.3 on, the broker cancels a consumer that does not acknowledge in time. `worker` says
    so, consumes again, and handles the message again, since the broker has requeued it and ignores the late
    acknowledgement. `worker` does not count the first run as done.
    """
    shell = lonely_shell
    with EmbeddedBroker(consumer_timeout=1.0, like="4.3", management_port=0) as broker:
        shell.environment["MQTOOL_URL"] = broker.url
        shell.run("mqtool", "queue", "declare", "jobs")
        shell.run("mqtool", "send", "-q", "jobs", "job")
        program = "echo job.$MQ_REDELIVERED; [ $MQ_REDELIVERED = 1 ] || until [ -e end ]; do sleep 0.1; done"
        worker = shell.start("mqtool", "worker", "-q", "jobs", "--shell", "--exec", program).wait_until_ready()
        listing = ("mqtool", "list", "queues", "name", "messages_ready", "--management", str(broker.management_url))
        worker.wait_for_stdout("job.0")
        wait_until(lambda: shell.run(*listing).stdout == "jobs\t1\n", "the broker to requeue the message")
        (shell.directory / "end").touch()
        worker.wait_for_stdout("job.1")
        result = worker.interrupt().wait()
    assert (result.code, result.stderr.count("the broker cancelled the consumer of queue 'jobs'")) == (0, 1)
    assert "1 done, 0 retries, 0 dead, 1 delivered again" in result.stderr
    assert "lost with it" not in result.stderr


@pytest.mark.parametrize(("like", "protocol"), [("3.10", "amqp0.9.1"), ("4.3", "amqp0.9.1"), ("4.3", "amqp1.0")])
def test_worker_ends_if_a_redelivered_message_takes_too_long_again(
    lonely_shell: Shell, like: str, protocol: str
) -> None:
    """If a program takes longer than the consumer timeout for a message that has been redelivered, it would do so each
    time. `worker` ends, and names the message and the settings that raise the timeout.
    """
    shell = lonely_shell
    with EmbeddedBroker(consumer_timeout=1.0, like=like) as broker:
        shell.environment["MQTOOL_URL"] = broker.url
        shell.run("mqtool", "queue", "declare", "jobs")
        shell.run("mqtool", "send", "-q", "jobs", "job")
        program = "echo x >> runs; n=$(wc -l < runs); echo run$n.; until [ -e end$n ]; do sleep 0.1; done"
        options = ("--protocol", protocol, "--concurrency", "2")  # the broker redelivers while a program still runs
        worker = shell.start("mqtool", "worker", "-q", "jobs", *options, "--shell", "--exec", program)
        for number in (1, 2):
            worker.wait_for_stdout(f"run{number + 1}.")
            (shell.directory / f"end{number}").touch()
        worker.wait_for_stderr("the delivery was lost")
        (shell.directory / "end3").touch()
        result = worker.wait()
    said = "was redelivered, and again not done within the consumer timeout of queue 'jobs'"
    assert (result.code, said in result.stderr) == (69, True), result.stderr
    assert "hint: raise consumer_timeout in rabbitmq.conf, or for the queue" in result.stderr


def test_rpc_server_ends_if_a_redelivered_request_takes_too_long_again(lonely_shell: Shell) -> None:
    """`rpc-server`, too, ends if a program takes longer than the consumer timeout for a redelivered request."""
    shell = lonely_shell
    with EmbeddedBroker(consumer_timeout=0.5, like="4.3", management_port=0) as broker:
        shell.environment["MQTOOL_URL"] = broker.url
        shell.run("mqtool", "queue", "declare", "asked")
        shell.run("mqtool", "queue", "declare", "answers")
        request = '{"body": "1", "properties": {"reply_to": "answers"}}'
        shell.run("mqtool", "send", "-q", "asked", "--json", stdin=request)
        program = "echo x >> runs; n=$(wc -l < runs); echo $n; until [ -e end$n ]; do sleep 0.1; done"
        server = shell.start("mqtool", "rpc-server", "-q", "asked", "--shell", "--exec", program)
        where = ("--where", "name = asked", "--management", str(broker.management_url))
        listing, runs = ("mqtool", "list", "queues", "messages_ready", *where), shell.directory / "runs"
        for number in (1, 2):
            wait_until(lambda n=number: runs.exists() and len(runs.read_text()) == 2 * n, "the program to start")
            wait_until(lambda: shell.run(*listing).stdout == "1\n", "the broker to requeue the request")
            (shell.directory / f"end{number}").touch()
        result = server.wait()
    assert (result.code, "was redelivered, and again not done within" in result.stderr) == (69, True), result.stderr
