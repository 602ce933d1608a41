"""What a person with two terminals sees of tutorial 1."""

from tests.cli.shell import Shell


def test_a_message_goes_from_send_to_receive(shell: Shell) -> None:
    """The tutorial's lines, to the byte; the received line alone is on stdout."""
    sent = shell.run("mqtool", "send")
    received = shell.run("mqtool", "receive", "-c", "1")

    assert (sent.stdout, sent.stderr, sent.code) == ("", " [x] Sent 'Hello World!'\n", 0)
    assert received.stdout == " [x] Received Hello World!\n"
    assert received.stderr == " [*] Waiting for messages. To exit press CTRL+C\n"
    assert received.code == 0
