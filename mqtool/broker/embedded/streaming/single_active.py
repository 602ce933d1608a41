"""Groups of consumers of which one is active, as RabbitMQ 3.11 and later have them."""

from typing import NamedTuple, Protocol


class Member(Protocol):
    """A subscription in a group."""

    def activate(self) -> None:
        """Ask the client where to start; then it gets chunks."""

    def step_down(self) -> None:
        """Send no more, and ask the client to finish; `Groups.stepped_down` follows."""


class GroupKey(NamedTuple):
    """What a group is for: a name that consumers of one stream share."""

    vhost: str
    stream: str
    name: str


class _Group:
    """Consumers in the order they came.

    Attributes:
        partition: the place of the stream in a super stream, so that each consumer gets some of the partitions;
            None if it is in none, and the first consumer is the active one.
        active: None while one that was active finishes.
    """

    def __init__(self, partition: int | None) -> None:
        self._partition = partition
        self._finishing: Member | None = None
        self.members: list[Member] = []
        self.active: Member | None = None

    def add(self, member: Member) -> None:
        self.members.append(member)
        if len(self.members) == 1:
            self._activate()
        else:
            self._balance()

    def remove(self, member: Member) -> None:
        self.members.remove(member)
        if member in (self.active, self._finishing):
            self._activate()
        else:
            self._balance()

    def stepped_down(self, member: Member) -> None:
        if member is self._finishing:
            self._activate()

    def _chosen(self) -> Member:
        return self.members[(self._partition or 0) % len(self.members)]

    def _activate(self) -> None:
        self._finishing = None
        self.active = self._chosen() if self.members else None
        if self.active is not None:
            self.active.activate()

    def _balance(self) -> None:
        if self.active is not None and self._partition is not None and self._chosen() is not self.active:
            self._finishing, self.active = self.active, None
            self._finishing.step_down()


class Groups:
    """All groups of a broker."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, _Group] = {}

    def add(self, key: GroupKey, member: Member, partition: int | None) -> None:
        """Add a consumer, which becomes active now, later, or never."""
        self._groups.setdefault(key, _Group(partition)).add(member)

    def remove(self, key: GroupKey, member: Member) -> None:
        """Remove a consumer; another one may become active."""
        group = self._groups[key]
        group.remove(member)
        if not group.members:
            del self._groups[key]

    def stepped_down(self, key: GroupKey, member: Member) -> None:
        """A consumer that was active has finished."""
        group = self._groups.get(key)
        if group is not None:
            group.stepped_down(member)
