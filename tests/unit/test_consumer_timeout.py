"""The error about the broker's consumer timeout, which RabbitMQ checks once a minute."""

from pika.exceptions import ChannelClosedByBroker

from mqtool.amqp import pika_errors as failures

SAID = (
    "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. "
    "This timeout value can be configured, see consumers doc guide to learn more"
)


def test_the_error_about_a_consumer_timeout_states_the_timeout() -> None:
    """If the broker closes a channel because of the consumer timeout, mqtool's error states the timeout, and the hint
    names the setting consumer_timeout in rabbitmq.conf. mqtool can reopen the channel after this error.
    """
    error = failures.closed_by_broker(ChannelClosedByBroker(406, SAID))
    assert "not acknowledged within the broker's consumer timeout of 30m" in str(error)
    assert "consumer_timeout in rabbitmq.conf" in (error.hint or "")
    assert failures.is_mended_by_reopening(ChannelClosedByBroker(406, SAID), [])
