"""Commands that remove or replace a queue count the messages that no consumer can get now, which queue.declare omits:
those that wait for a delayed retry, and dead letters that an at-least-once quorum queue still holds.
"""

from collections.abc import Iterator

import pika
import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker
from tests.cli.shell import Shell, wait_until

DELAYED = {"x-delayed-retry-type": "all", "x-delayed-retry-min": 600_000}
AT_LEAST_ONCE = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "missing",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
EITHER = pytest.mark.parametrize(
    ("arguments", "what"),
    [(DELAYED, "2 waiting for a delayed retry"), (AT_LEAST_ONCE, "2 dead letters that it still holds")],
    ids=["delayed", "dead letters"],
)


@pytest.fixture(scope="module")
def embedded() -> Iterator[TestBroker]:
    """An embedded broker that behaves like RabbitMQ 4.3, used instead of the one that all tests share."""
    with EmbeddedBroker(like="4.3", management_port=0) as broker:
        yield TestBroker("embedded", broker.url.removesuffix("/%2F"), str(broker.management_url))


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows the management API."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


def give_back_two(broker: TestBroker, arguments: dict[str, object]) -> None:
    """Declare a quorum queue `jobs` and return two messages to it, which are not ready then."""
    if arguments is DELAYED and not broker.differs_since("4.3", "delayed retry"):
        pytest.skip("RabbitMQ delays no retries before 4.3")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("jobs", durable=True, arguments={**arguments, "x-queue-type": "quorum"})
        for body in (b"1", b"2"):
            channel.basic_publish("", "jobs", body)
        for _ in range(2):
            got = channel.basic_get("jobs")[0]
            assert got is not None
            channel.basic_nack(got.delivery_tag, requeue=arguments is DELAYED)
        channel.queue_declare("jobs", passive=True)


def there(broker: TestBroker) -> int | None:
    """Return the number of messages in `jobs` according to the management API; None if it does not know it yet."""
    found = broker.api("GET", f"queues/{broker.vhost}/jobs")
    assert isinstance(found, dict)
    return found.get("messages")


@EITHER
@pytest.mark.parametrize("option", ["--yes", "--dry-run"])
def test_queue_convert_refuses_a_queue_with_messages_that_it_cannot_move(
    admin: Shell, broker: TestBroker, arguments: dict[str, object], what: str, option: str
) -> None:
    """`queue convert` changes nothing and exits with 2 if messages of the queue wait for a delayed retry, or if it
    still holds dead letters, even if they have been returned to the queue just now.
    """
    give_back_two(broker, arguments)
    refused = admin.run("mqtool", "queue", "convert", "jobs", "--to", "classic", "-a", "x-overflow:=null", option)
    assert refused.code == 2, refused.stderr
    assert "'jobs' cannot be converted: 2 " in refused.stderr
    assert f"{what[2:]} would be lost" in refused.stderr
    wait_until(lambda: there(broker) == 2, "both messages are still there")


@EITHER
@pytest.mark.parametrize("command", ["delete", "purge"])
def test_queue_delete_and_purge_say_what_they_would_remove_besides_ready_messages(
    admin: Shell, broker: TestBroker, arguments: dict[str, object], what: str, command: str
) -> None:
    """Before `queue delete` or `queue purge` asks, it waits until the broker's counts are current, and also says how
    many messages wait for a delayed retry, or how many dead letters the queue still holds. RabbitMQ before 4.3 keeps
    the dead letters in a purge.
    """
    give_back_two(broker, arguments)
    asked = admin.run("mqtool", "queue", command, "jobs")
    is_kept = command == "purge" and not broker.differs_since("4.3", "a purge removes dead letters, too")
    assert (asked.code, f"0 ready messages and {what}" in asked.stderr) == (2, not is_kept), asked.stderr


@pytest.mark.parametrize("command", ["delete", "purge"])
def test_without_the_management_api_queue_delete_and_purge_say_what_is_not_known(
    admin: Shell, broker: TestBroker, command: str
) -> None:
    """Without the management API, `queue delete` and `queue purge` of a quorum queue do not claim to know that there
    are no dead letters that it still holds.
    """
    give_back_two(broker, AT_LEAST_ONCE)
    asked = admin.run("mqtool", "queue", command, "jobs", "--management", "http://127.0.0.1:1")
    is_kept = command == "purge" and not broker.differs_since("4.3", "a purge removes dead letters, too")
    unknown = "an unknown number of dead letters that it still holds"
    assert (asked.code, unknown in asked.stderr) == (2, not is_kept), asked.stderr


@EITHER
def test_list_queues_queue_show_and_policy_set_count_messages_that_are_not_ready(
    admin: Shell, broker: TestBroker, arguments: dict[str, object], what: str
) -> None:
    """`list queues` counts messages that wait for a delayed retry, and dead letters that the queue still holds, among
    its messages. `queue show` prints their number. `policy set` counts them if the queue would expire.
    """
    give_back_two(broker, arguments)
    wait_until(lambda: there(broker) == 2, "the messages in the API")
    columns = ("messages", "messages_ready", "messages_unacknowledged")

    def listed() -> list[str]:
        return admin.run("mqtool", "list", "queues", *columns).stdout.split()

    wait_until(lambda: listed()[-3:] == ["2", "0", "0"], "the counts")
    limit = ("--pattern", "^jobs$", "--definition", '{"expires": 60000}')
    asked = admin.run("mqtool", "policy", "set", "short", *limit)
    assert (asked.code, "is deleted with 2 messages" in asked.stderr) == (2, True), asked.stderr
    shown = what.replace("dead letters that it still holds", "dead letters held")
    wait_until(
        lambda: shown in admin.run("mqtool", "queue", "show", "jobs").stdout, shown
    )  # RabbitMQ's next statistics
