"""What a person with two terminals sees of tutorial 1."""

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Shell


def test_a_message_goes_from_send_to_receive(shell: Shell) -> None:
    """The tutorial's lines, to the byte; the received line alone is on stdout."""
    sent = shell.run("mqtool", "send")
    received = shell.run("mqtool", "receive", "-c", "1")

    assert (sent.stdout, sent.stderr, sent.code) == ("", " [x] Sent 'Hello World!'\n", 0)
    assert received.stdout == " [x] Received Hello World!\n"
    assert received.stderr == " [*] Waiting for messages. To exit press CTRL+C\n"
    assert received.code == 0


@on_any_broker
def test_as_other_tools_call_it(shell: Shell, broker: TestBroker) -> None:
    """publish and consume, a URL without a scheme, -n, and seconds without a unit."""
    assert shell.run("mqtool", "publish", "-u", broker.url.removeprefix("amqp://"), "hi").code == 0
    received = shell.run("mqtool", "sub", "-n", "1", "--timeout", "60", "--raw")
    assert (received.stdout, received.code) == ("hi\n", 0)
    assert "hello" in shell.run("mqtool", "queue", "ls", "--management", broker.management).stdout
