"""--to and what goes with it: a queue to move messages to, here or on another broker."""

from typing import Annotated, NamedTuple

from typer import Option

from mqtool.amqp import TlsFiles
from mqtool.cli import contexts
from mqtool.cli.access import Access, Choice, is_same_node, resolve_addresses
from mqtool.errors import UsageError


class Destination(NamedTuple):
    """A queue, here or on another broker."""

    to: Annotated[str, Option(metavar="QUEUE", help="Queue to move them to; it must exist")]
    to_url: Annotated[str | None, Option(help="Broker of that queue, if it is another one")] = None
    to_context: Annotated[
        str | None,
        Option(metavar="NAME", help="Broker of that queue, by a context's name", autocompletion=contexts.names),
    ] = None

    def access(self, source: Access) -> Access | None:
        """How to reach the queue's broker; None if it is the source's, with the same virtual host.

        Raises:
            UsageError: an option is not valid, or both name a broker.
        """
        if self.to_url is not None and self.to_context is not None:
            raise UsageError("--to-url and --to-context name two brokers", "use one of them")
        if self.to_url is not None:
            choice = Choice(self.to_url, "from --to-url", is_typed=True)
        elif self.to_context is not None:
            found = contexts.load().named(self.to_context)
            choice = Choice(found.url, f"from --to-context {found.name}", found, is_typed=True)
        else:
            return None
        addresses = resolve_addresses(choice)
        uses_tls = any(address.tls for address in addresses)
        tls = choice.tls(source.tls if uses_tls and choice.context is None else TlsFiles())
        other = source._replace(addresses=addresses, tls=tls, management_url=None, protected=choice.protected)
        is_same = other.vhost == source.vhost and is_same_node(other.address, source.address)
        return None if is_same else other
