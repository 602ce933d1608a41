"""mqtool receive-delayed."""

from typing import Annotated

import typer

from mqtool.cli.access import Access
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.commands.send_delayed import RoutingKey, as_known
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ExchangeOptions, TutorialBroker, UsedQueueOptions, exchange_option
from mqtool.cli.options.queue_options import tutorials_exchange, tutorials_queue
from mqtool.cli.options.receiving_options import ReceivingOptions, WhereOption
from mqtool.cli.pipe.existence import check_exchange, checked
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.delays.delay_plugin import LOSES
from mqtool.message import Delivery
from mqtool.topology import DELAYED
from mqtool.tutorials import delayed_messages
from mqtool.tutorials.dialects import NAMES, Dialect

app = typer.Typer()


@command(
    app,
    "mqtool receive-delayed",
    "mqtool receive-delayed -F '%b, %l ms late'",
    effect=Effect.CHANGES,
    instead={
        "queue": tutorials_queue(NAMES[Dialect.PYTHON].delay_queue),
        "exchange": tutorials_exchange(NAMES[Dialect.PYTHON].delay_exchange),
    },
    without=("protocol",),
    heading="Tutorials",
)
def receive_delayed(
    queue: UsedQueueOptions,
    receiving: ReceivingOptions,
    broker: TutorialBroker,
    exchange: Annotated[str | None, exchange_option("Exchange")] = None,
    routing_key: RoutingKey = None,
    where: WhereOption = None,
) -> None:
    """Receive delayed messages; show how late each one arrived.

    With --where, messages that do not match stay in the queue, but no other consumer gets them until the command ends.
    """
    matching = Matching(receiving, where)
    names = dialect_names(broker)
    target = queue.of(names.delay_queue)
    delaying = ExchangeOptions(exchange=exchange).of(names.delay_exchange)
    key = names.delay_queue.name if routing_key is None else routing_key

    with receiving_channel(receiving, broker, _received, opened=Access.channel) as (channel, incoming):
        target = checked(target, queue, channel, broker, incoming.access)
        check_exchange(delaying, channel, incoming.access, declares=queue.declare)
        known = as_known(channel, delaying)
        if known.type == DELAYED and target.arguments.get("x-queue-type") == "quorum":
            output.warning(LOSES)
        if exchange is not None and routing_key is None:
            output.notice(
                f"queue {target.name!r} is bound to exchange {exchange!r} with key {key!r}; to use another key: -r"
            )
        settings = matching.within_limit(matching.settings(), incoming.access, channel, target.name)
        settings = incoming.printed(settings)
        deliveries = delayed_messages.receive(channel, known, key, target, settings)
        incoming.print_all(matching.of(channel, deliveries, settings))


def _received(delivery: Delivery) -> str:
    late = delivery.lateness
    return " [x] Received " if late is None else f" [x] Received, {late:,} ms late: "
