"""Programs that use amqpstorm can use channels, transactions, and the library's client of the management API."""

import os
from urllib.parse import unquote, urlsplit

import amqpstorm
from amqpstorm.management import ManagementApi

url = urlsplit(os.environ["AMQP_URL"])
vhost = unquote(url.path[1:]) or "/"
connection = amqpstorm.Connection(url.hostname, url.username, url.password, port=url.port, virtual_host=vhost)
with connection, connection.channel() as channel:
    channel.queue.declare("storm", durable=True)
    channel.confirm_deliveries()
    assert channel.basic.publish("one", "storm", properties={"headers": {"big": 2**40}}, mandatory=True)
    try:
        channel.basic.publish("lost", "storm.nowhere", mandatory=True)
    except amqpstorm.AMQPMessageError as error:
        assert error.error_code == 312
    else:
        raise AssertionError("an unroutable message raised no error")
    message = channel.basic.get("storm")
    assert message.properties["headers"] == {"big": 2**40}
    message.reject(requeue=True)
    channel.basic.consume(lambda message: (message.ack(), channel.stop_consuming()), "storm")
    channel.start_consuming()

    with connection.channel() as other, other.tx:
        other.basic.publish("two", "storm")
    assert channel.basic.get("storm", no_ack=True).body == "two"

    api = ManagementApi(os.environ["MANAGEMENT_URL"], url.username, url.password)
    api.queue.declare("storm.api", vhost, durable=True, arguments={"x-queue-type": "quorum"})
    assert api.queue.get("storm.api", vhost)["type"] == "quorum"
    assert api.basic.publish("three", "storm.api", virtual_host=vhost) == {"routed": True}
    assert [each.body for each in api.basic.get("storm.api", vhost, requeue=False)] == ["three"]
    assert api.aliveness_test(vhost)["status"] == "ok"
    api.user.create("storm", "secret", tags="management")
    api.user.set_permission("storm", vhost, read_regex="^storm")
    assert api.user.get_permission("storm", vhost)["read"] == "^storm"
    api.user.delete("storm")
    api.queue.delete("storm.api", vhost)
    channel.queue.delete("storm")
