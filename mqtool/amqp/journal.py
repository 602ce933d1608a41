"""What to set up again when a channel opens anew: exchanges, queues and bindings. Does no I/O."""

from collections.abc import Iterator
from dataclasses import replace

from mqtool.topology import Binding, Exchange, Queue


class Journal:
    """Exchanges, queues and bindings in the order of their declaration."""

    def __init__(self) -> None:
        self._entries: list[Exchange | Queue | Binding] = []
        self._names: dict[str, str] = {}
        self._differing: set[tuple[type, str]] = set()

    def __iter__(self) -> Iterator[Exchange | Queue | Binding]:
        return iter(tuple(self._entries))

    def remember(self, entry: Exchange | Queue | Binding) -> None:
        """Set this up again, too."""
        self._entries.append(entry)

    @property
    def exchanges(self) -> list[str]:
        """The names of the exchanges."""
        return [entry.name for entry in self._entries if isinstance(entry, Exchange)]

    def renamed(self, queue: str, name: str) -> None:
        """The broker has given a queue that it named another name."""
        self._names[queue] = name

    def current_name(self, queue: str) -> str:
        """The present name of a queue, which changes with each reconnection if the broker chose it."""
        return self._names.get(queue, queue)

    def current(self, binding: Binding) -> Binding:
        """A binding with the present name of its queue."""
        if binding.to_exchange or binding.destination not in self._names:
            return binding
        return replace(binding, destination=self._names[binding.destination])

    def differs(self, thing: Exchange | Queue) -> bool:
        """Whether the broker has it with other settings, and we use it nevertheless."""
        return (type(thing), thing.name) in self._differing

    def set_differs(self, thing: Exchange | Queue) -> None:
        """Remember that declaring it would close the channel."""
        self._differing.add((type(thing), thing.name))

    def unset_differs(self, thing: Exchange | Queue) -> None:
        """It is gone, and can be declared."""
        self._differing.discard((type(thing), thing.name))


def is_named_by_broker(queue: Queue) -> bool:
    """Whether the broker chose the queue's name, and chooses another next time."""
    return queue.exclusive and queue.name.startswith("amq.")
