"""The plan of a simulation: queues, clients and faults, drawn from a seed. A plan can be shortened."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.simulation.judge import Kind

#: Enough memory for all messages of a simulation.
_MUCH_ROOM = 32 * 1024 * 1024

_DLX = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}

KINDS: dict[str, Kind] = {
    "classic": Kind(),
    "rejecting": Kind(_DLX, has_dlx=True),
    "expiring": Kind({**_DLX, "x-message-ttl": 3000}, frozenset({"expired"}), ttl=3, has_dlx=True),
    "newest": Kind({**_DLX, "x-max-length": 6}, frozenset({"maxlen"}), has_dlx=True, max_length=6),
    "bytes": Kind({**_DLX, "x-max-length-bytes": 900}, frozenset({"maxlen"}), has_dlx=True),
    "oldest": Kind({**_DLX, "x-max-length": 8, "x-overflow": "reject-publish"}, has_dlx=True),
    "oldest-dlx": Kind(
        {**_DLX, "x-max-length": 8, "x-overflow": "reject-publish-dlx"}, frozenset({"maxlen"}), has_dlx=True
    ),
    "priority": Kind({"x-max-priority": 5}, is_ordered=False, priorities=5),
    "single": Kind({"x-single-active-consumer": True}, single_active=True),
    "quorum": Kind({"x-queue-type": "quorum"}),
    "limited": Kind({**_DLX, "x-queue-type": "quorum", "x-delivery-limit": 2}, has_dlx=True, delivery_limit=2),
    "quorum-single": Kind({"x-queue-type": "quorum", "x-single-active-consumer": True}, single_active=True),
    "at-least-once": Kind(
        {
            **_DLX,
            "x-queue-type": "quorum",
            "x-message-ttl": 4000,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
        frozenset({"expired"}),
        ttl=4,
        has_dlx=True,
    ),
    "stream": Kind({"x-queue-type": "stream"}, stream=True),
    "retained": Kind(
        {"x-queue-type": "stream", "x-max-length-bytes": 4000, "x-stream-max-segment-size-bytes": 1000},
        stream=True,
        retention=True,
    ),
}


@dataclass(frozen=True)
class Step:
    """A step of a client, or a fault.

    Attributes:
        at: when, in seconds after the start; later if the client is still busy.
        what: the name of a method of the role in `actors.py`.
        given: its arguments.
    """

    at: float
    what: str
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Actor:
    """A client, or the source of faults.

    Attributes:
        role: the class in `actors.py`.
        seed: the seed of its decisions during the simulation.
    """

    name: str
    role: str
    seed: int
    steps: tuple[Step, ...]
    given: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        steps = "".join(f"\n    {step.at:7.2f}  {step.what} {step.given or ''}" for step in self.steps)
        return f"  {self.name} ({self.role}) {self.given or ''}{steps}"


@dataclass(frozen=True)
class Plan:
    """The plan of a whole simulation.

    Attributes:
        queues: the name of each queue's kind, which is described in `judge.Kind`.
        like: the RabbitMQ version that the broker behaves like.
        on_disk: False for a broker in memory, which is never restarted.
        room: stored messages are paged out while more bytes than this are held in memory.
    """

    seed: int
    queues: dict[str, str]
    actors: tuple[Actor, ...]
    like: str = "3.10"
    on_disk: bool = True
    room: int = _MUCH_ROOM

    def __str__(self) -> str:
        stored = "on disk" if self.on_disk else "in memory"
        if self.room < _MUCH_ROOM:
            stored += f", paged out beyond {self.room} bytes"
        lines = [f"seed {self.seed}, like RabbitMQ {self.like}, {stored}; queues: {', '.join(self.queues.values())}"]
        return "\n".join([*lines, *map(str, self.actors)])

    @property
    def size(self) -> int:
        return sum(len(actor.steps) for actor in self.actors)

    def without_actor(self, index: int) -> "Plan":
        return replace(self, actors=(*self.actors[:index], *self.actors[index + 1 :]))

    def without_steps(self, index: int, start: int, count: int) -> "Plan":
        actor = self.actors[index]
        fewer = replace(actor, steps=(*actor.steps[:start], *actor.steps[start + count :]))
        return replace(self, actors=(*self.actors[:index], fewer, *self.actors[index + 1 :]))


_SECONDS = 40.0


def draw(seed: int) -> Plan:  # noqa: C901 - one role after another
    """Draw a plan from a seed."""
    random = Random(seed)
    kinds = random.sample(list(KINDS), random.randint(2, 4))
    queues = {f"q{number}-{kind}": kind for number, kind in enumerate(kinds)}
    on_disk = random.random() < 0.7
    like = random.choice(["3.10", "4.0", "4.3"])
    plain = [name for name, kind in queues.items() if not KINDS[kind].stream]
    streams = [name for name, kind in queues.items() if KINDS[kind].stream]
    actors: list[Actor] = []

    def add(role: str, steps: Callable[[Random], list[Step]], **given: Any) -> None:
        own = random.getrandbits(32)
        drawn = tuple(sorted(steps(Random(own)), key=lambda step: step.at))
        actors.append(Actor(f"{role.lower()}-{len(actors) + 1}", role, own, drawn, given))

    everywhere = [*plain, *streams]
    for _ in range(random.randint(1, 3)):
        add("Publisher", lambda r: _publishing(r, everywhere))
    if random.random() < 0.3:
        add("Transactions", lambda r: _transactions(r, plain or everywhere))
    if plain:
        for _ in range(random.randint(1, 3)):
            add("Consumer", lambda r: _consuming(r, plain))
        if random.random() < 0.4:
            add("Getter", lambda r: [Step(_when(r), "get", {"queue": r.choice(plain)}) for _ in range(r.randint(2, 8))])
        for role in ("Sender10", "Receiver10"):
            if like != "3.10" and random.random() < 0.6:
                steps = _sending10 if role == "Sender10" else _receiving10
                add(role, lambda r, steps=steps: steps(r, plain))  # type: ignore[misc]
    if streams:
        add("StreamPublisher", lambda r: _stream_publishing(r, r.choice(streams)))
        add("StreamReader", lambda r: _stream_reading(r, streams))
    if random.random() < 0.4:
        add("Rude", lambda r: [Step(_when(r), r.choice(_RUDE), {"queue": r.choice(everywhere)}) for _ in range(3)])
    if random.random() < 0.5:
        add("Administrator", lambda r: _administering(r, plain or everywhere))
    if random.random() < 0.8:
        add("Faults", lambda r: _faults(r, on_disk=on_disk))
    if on_disk and streams:
        actors += _full_at_a_release(Random(f"full {seed}"), actors)
    room = random.choice([_MUCH_ROOM, _MUCH_ROOM, 2000, 10_000])
    return Plan(seed, queues, tuple(actors), like, on_disk, room)


_RUDE = ("unknown_exchange", "unknown_tag", "other_arguments", "garbage", "unknown_queue", "frame_on_closed_channel")


def _when(random: Random) -> float:
    return round(random.random() * _SECONDS, 2)


def _publishing(random: Random, queues: list[str]) -> list[Step]:
    steps = []
    for _ in range(random.randint(3, 10)):
        given: dict[str, Any] = {"queue": random.choice(queues), "count": random.choice([1, 1, 2, 5, 12])}
        if random.random() < 0.15:
            given["exchange"] = random.choice(["amq.fanout", "amq.topic", "amq.headers", "nowhere", "delayed"])
        elif random.random() < 0.15:
            given |= {"exchange": "delayed", "delays": True}
        if random.random() < 0.2:
            given["persistent"] = False
        steps.append(Step(_when(random), "publish", given))
    if random.random() < 0.3:
        steps.append(Step(_when(random), "vanish", {"told": random.random() < 0.6}))
    return steps


def _transactions(random: Random, queues: list[str]) -> list[Step]:
    return [
        Step(
            _when(random),
            "transact",
            {"queue": random.choice(queues), "count": random.randint(1, 4), "commit": random.random() < 0.6},
        )
        for _ in range(random.randint(1, 4))
    ]


def _consuming(random: Random, queues: list[str]) -> list[Step]:
    steps = []
    for _ in range(random.randint(1, 3)):
        given = {
            "queue": random.choice(queues),
            "prefetch": random.choice([1, 2, 3, 10, 0]),
            "no_ack": random.random() < 0.08,
            "rejects": random.choice([0.0, 0.0, 0.2]),
            "requeues": random.choice([0.0, 0.2, 0.4]),
            "multiple": random.choice([0.0, 0.3]),
            "pause": random.choice([0.0, 0.1, 1.0]),
            "seconds": round(random.uniform(1, 20), 1),
            "then": random.choice(["cancel", "close", "vanish", "hang"]),
            "priority": random.choice([0, 0, 1, 5]),
        }
        steps.append(Step(_when(random), "consume", given))
    return steps


def _sending10(random: Random, queues: list[str]) -> list[Step]:
    steps = [
        Step(_when(random), "send", {"queue": random.choice(queues), "count": random.choice([1, 3, 10])})
        for _ in range(random.randint(1, 4))
    ]
    if random.random() < 0.1:
        steps.append(Step(_when(random), random.choice(["overdraw", "overdraw"]), {"queue": random.choice(queues)}))
    return steps


def _receiving10(random: Random, queues: list[str]) -> list[Step]:
    return [
        Step(
            _when(random),
            "receive",
            {
                "queue": random.choice(queues),
                "credit": random.choice([1, 3, 10]),
                "seconds": round(random.uniform(1, 15), 1),
                "accepts": random.choice([1.0, 0.7]),
                "then": random.choice(["detach", "close", "vanish"]),
            },
        )
        for _ in range(random.randint(1, 3))
    ]


def _stream_publishing(random: Random, stream: str) -> list[Step]:
    return [
        Step(_when(random), "publish", {"stream": stream, "count": random.choice([1, 5, 20])})
        for _ in range(random.randint(2, 6))
    ]


def _stream_reading(random: Random, streams: list[str]) -> list[Step]:
    return [
        Step(
            _when(random),
            "read",
            {
                "stream": random.choice(streams),
                "count": random.randint(5, 40),
                "tracks": random.choice([0.0, 0.3, 1.0]),
                "then": random.choice(["close", "vanish", "hang"]),
            },
        )
        for _ in range(random.randint(1, 4))
    ]


def _administering(random: Random, queues: list[str]) -> list[Step]:
    whats = ["overview", "list", "list", "peek", "publish", "limit", "unlimit", "purge", "delete", "user"]
    return [
        Step(_when(random), random.choice(whats), {"queue": random.choice(queues)}) for _ in range(random.randint(1, 5))
    ]


_NETWORK_FAULTS = ("reset", "stall", "half_open", "jump")
_DISK_FAULTS = ("kill", "power", "stop", "eio", "full")


def _full_at_a_release(random: Random, actors: list[Actor]) -> Iterator[Actor]:
    """Yield faults for some plans: the disk is full when a delayed message is released, and the broker is killed."""
    delayed = [step.at for actor in actors for step in actor.steps if step.given.get("delays")]
    if not delayed or random.random() < 0.5:
        return
    full = random.choice(delayed) + round(random.uniform(0, 2), 2)
    kill = full + round(random.uniform(0, 5), 2)
    yield Actor("full", "Faults", random.getrandbits(32), (Step(full, "full", {"seconds": 5.0}),))
    yield Actor("kill", "Faults", random.getrandbits(32), (Step(kill, "kill", {"seconds": 0.5}),))


def _faults(random: Random, *, on_disk: bool) -> list[Step]:
    steps = []
    for _ in range(random.randint(1, 4)):
        what = random.choice((*_NETWORK_FAULTS, *(_DISK_FAULTS * on_disk)))
        steps.append(Step(_when(random), what, {"seconds": round(random.uniform(0.1, 5), 2)}))
    return steps
