"""The copies of messages that `mqtool ui --firehose` and `tutorial try` show."""

from contextlib import closing, nullcontext

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.inspection.wiring import Wiring
from mqtool.management import Management
from mqtool.message import Message
from mqtool.ui.copies import Copies
from tests.brokers import TestBroker
from tests.cli.shell import wait_until
from tests.cli.test_firehose import FORGED


@pytest.mark.usefixtures("no_other_firehose")
def test_ui_firehose_reports_forged_copies_and_shows_later_messages(broker: TestBroker, connection: Connection) -> None:
    """If somebody else publishes messages with forged or invalid headers to the private queue of `ui --firehose`, the
    page does not treat them as copies from the firehose, and reports them in a single notice. It still shows the
    firehose's later copies.
    """
    broker.api("PUT", f"vhosts/{broker.vhost}", {"tracing": True})
    said: list[str] = []
    copies = Copies(
        lambda: Connection(parse_addresses(broker.url)), broker.vhost, lambda _: nullcontext(), report=said.append
    )
    with closing(copies):
        copies.follow(Management(broker.management, "guest", "guest"), Wiring(broker.vhost, {}), {})
        [queue], channel = copies.private, connection.channel()
        forged = [Message(b"forged", queue, "", {"headers": headers}) for headers in FORGED]
        list(channel.publish([*forged, Message(b"real", "k", "amq.fanout")]))
        seen: dict[str, str] = {}

        def has_real() -> bool:
            found = [event["details"] for event in copies.events() if "details" in event]
            seen.update((each["exchange"], each["body"]) for each in found)
            return "amq.fanout" in seen

        wait_until(has_real, "the message to be shown")
    broker.api("PUT", f"vhosts/{broker.vhost}", {"tracing": False})
    assert seen == {"": "forged", "amq.fanout": "real"}  # the firehose also copies what is published to the queue
    assert len(said) == 1
    assert "not copies of the firehose" in said[0]
