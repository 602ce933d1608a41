"""mqtool send, mqtool receive."""

from typing import Annotated

import typer

from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.options import Broker, DelayOptions, MessageOptions, QueueOptions, Receiving, live_names, takes_groups
from mqtool.cli.pipe import publishing, source
from mqtool.cli.pipe.delaying import held
from mqtool.cli.pipe.source import Addressing
from mqtool.topology import Exchange
from mqtool.tutorials import hello_world

app = typer.Typer()


@app.command(epilog="mqtool send 'Hello World!'\ntail -f app.log | mqtool send -l -q app\nmqtool send --json < saved")
@takes_groups
def send(
    queue: QueueOptions,
    options: MessageOptions,
    delays: DelayOptions,
    broker: Broker,
    words: Annotated[list[str] | None, typer.Argument(help="Message words (default: stdin, or 'Hello World!')")] = None,
    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange",
            "-e",
            help="Publish to this exchange, and declare nothing",
            rich_help_panel="Topology",
            autocompletion=live_names.exchanges,
        ),
    ] = None,
    routing_key: Annotated[
        str | None,
        typer.Option("--routing-key", "-r", help="Routing key (default: the queue's name)", rich_help_panel="Topology"),
    ] = None,
) -> None:
    """Send messages to a queue (tutorial 1)."""
    to_queue = exchange is None and routing_key is None
    addressing = Addressing("" if queue.queue is not None else exchange, queue.queue or routing_key)
    messages = source.messages(words, options, default=b"Hello World!", addressing=addressing, delays=delays)
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        if to_queue:
            target = queue.of(broker.names.hello)
            published = held(messages, delays, options, channel, queue=target)
            receipts = hello_world.send(channel, target, published)
        else:
            named = Exchange(exchange or "", durable=True)
            published = held(messages, delays, options, channel, exchange=named, routing_key=routing_key)
            receipts = channel.publish(published, exchange=named, routing_key=routing_key or "")
        publishing.report(
            receipts, lambda message: f" [x] Sent '{publishing.text(message)}'", options, channel, messages
        )


@app.command(epilog="mqtool receive\nmqtool receive --raw >> app.log\nmqtool receive --json | mqtool send --json -q b")
@takes_groups
def receive(queue: QueueOptions, receiving: Receiving, broker: Broker) -> None:
    """Receive messages from a queue (tutorial 1)."""
    write = receiving.writer(lambda _: " [x] Received ")
    with broker.access().channel() as channel:
        deliveries = hello_world.receive(channel, queue.of(broker.names.hello), receiving.settings())
        receiving.print_all(channel, deliveries, write, WAITING_FOR_MESSAGES)
