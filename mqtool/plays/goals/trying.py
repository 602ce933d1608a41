"""Tries a goal: prepares it, watches the broker, and says what is missing until the goal is reached.

records() of mqtool/ui ──> Seen ──> Goal.reached, Goal.mistakes ──> TrialFinding
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from mqtool.amqp import Connection
from mqtool.errors import NotFound, Unavailable
from mqtool.inspection.upgrade import Version, running
from mqtool.management import Management, exchange_path, path
from mqtool.plays.goals.goal import Goal, TrialFault
from mqtool.plays.goals.seen import Json, Seen
from mqtool.stage.stage import undisturbed
from mqtool.taps import switch_firehose
from mqtool.ui.copies import Copies
from mqtool.ui.records import records

#: How often the caller gets the chance to do something else, in seconds.
_LOOK = 0.1
#: A mistake is said once nothing more has happened for this many seconds: the learner may still be typing.
_SETTLES = 1.0
#: Or once it has been the same for this many seconds, even if something happens all the time.
_STANDS = 3.0
_QUEUE_TYPES = {"x-queue-type": "classic"}
#: How many seconds the broker has for its first report.
_PATIENCE = 60.0

#: The first version of RabbitMQ that speaks AMQP 1.0 without a plugin, and with the addresses that mqtool uses.
_SPEAKS_AMQP_1_0 = Version(4, 0)


class TrialFinding(NamedTuple):
    """Something to tell the learner.

    Attributes:
        kind: "mistake": something is wrong or missing. "fault": what `try` has done. "reached": the proof.
    """

    kind: Literal["mistake", "fault", "reached"]
    text: str


@dataclass(frozen=True)
class TrialBroker:
    """The broker on which goals are tried.

    Attributes:
        find: returns its management API.
        connect: opens a connection to the virtual host; used on RabbitMQ, to receive copies of messages.
        is_embedded: True if the broker reports each event.
    """

    find: Callable[[], Management]
    vhost: str
    connect: Callable[[], Connection]
    is_embedded: bool


def why_not(goal: Goal, broker: TrialBroker) -> str:
    """Return why a goal cannot be tried on a broker, as a clause; empty if it can."""
    if not broker.is_embedded and goal.only_embedded:
        return goal.only_embedded
    if goal.over_amqp10 and (version := running(broker.find())) < _SPEAKS_AMQP_1_0:
        return f"it is like RabbitMQ {version}, and does not speak AMQP 1.0"
    return ""


def is_embedded(api: Management) -> bool:
    """Return True if this is the API of an embedded broker, which reports each event."""
    with suppress(NotFound):
        api.get("mqtool/faults")
        return True
    return False


@contextmanager
def own_vhost(api: Management, name: str, user: str) -> Iterator[None]:
    """Context manager: add a virtual host for the learner alone, and delete it with everything in it."""
    try:
        api.put(path("vhosts", name), {})
        api.put(path("permissions", name, user), {"configure": ".*", "write": ".*", "read": ".*"})
        yield
    finally:
        with undisturbed(), suppress(NotFound):
            api.delete(path("vhosts", name))


class Trial:
    """A context manager that watches a virtual host while goals are tried there, one after the other."""

    def __init__(self, broker: TrialBroker) -> None:
        self.seen = Seen()
        self._broker = broker
        self._api = broker.find()
        self._records: SimpleQueue[Json | Exception] = SimpleQueue()
        self._over = threading.Event()
        self._copies: list[Copies] = []
        self._problem = ""

    def __enter__(self) -> "Trial":
        if not self._broker.is_embedded:
            switch_firehose(self._api, self._broker.vhost, on=True)
        threading.Thread(target=self._watch, name="mqtool-try", daemon=True).start()
        deadline = time.monotonic() + _PATIENCE
        while not self.seen.is_complete:
            self._take(_LOOK)
            if time.monotonic() > deadline:
                raise Unavailable(f"cannot watch the broker: {self._problem or 'it reports nothing'}")
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for copies in self._copies:
            copies.close()

    def _copy(self) -> Copies:
        copies = Copies(self._broker.connect, self._broker.vhost, lambda _: nullcontext())
        self._copies.append(copies)
        return copies

    def _watch(self) -> None:
        try:
            for record in records(self._broker.find, self._broker.vhost, "", self._copy):
                if self._over.is_set():
                    return
                self._records.put(record)
        except Exception as error:  # raised by _take(), in the caller's thread
            self._records.put(error)

    def _take(self, seconds: float) -> bool:
        """Take the records that have arrived; return True if they changed what was seen. Wait if there are none."""
        changed, timeout = False, seconds
        with suppress(Empty):
            while True:
                record = self._records.get(timeout=timeout) if timeout else self._records.get_nowait()
                if isinstance(record, Exception):
                    raise record
                if record["kind"] == "problem":
                    self._problem = record["text"]
                changed |= self.seen.take(record)
                timeout = 0.0
        return changed

    def prepare(self, goal: Goal) -> None:
        """Declare what the goal begins with, and look only at what happens from now on."""
        vhost = self._broker.vhost
        for name, arguments in goal.queues.items():
            body = {"durable": True, "arguments": {**_QUEUE_TYPES, **arguments}}
            with suppress(NotFound):
                self._api.delete(path("queues", vhost, name))
            self._api.put(path("queues", vhost, name), body)
        for exchange, kind, key, queue in goal.bindings:
            self._api.put(exchange_path(vhost, exchange), {"type": kind, "durable": False})
            self._api.post(path("bindings", vhost, "e", exchange, "q", queue), {"routing_key": key})
        self._take(_LOOK)
        self.seen.begin()

    def findings(self, goal: Goal) -> Iterator[TrialFinding | None]:
        """Yield what there is to tell until the goal is reached. Yields None, often, if there is nothing new."""
        said = mistake = ""
        changed_at = mistaken_since = time.monotonic()
        while True:
            if self._take(_LOOK):
                changed_at = time.monotonic()
            seen = self.seen
            if goal.fault is not None and not seen.acted and goal.fault.when(seen):
                yield TrialFinding("fault", self._bring_about(goal.fault))
            if proof := goal.reached(seen):
                yield TrialFinding("reached", proof)
                return
            before, mistake = mistake, next((text for each in goal.mistakes if (text := each(seen))), "")
            now = time.monotonic()
            if mistake != before:
                mistaken_since = now
            is_settled = now - changed_at > _SETTLES or now - mistaken_since > _STANDS
            if is_settled and mistake and mistake != said:
                yield TrialFinding("mistake", mistake)
            else:
                yield None
            said = mistake if is_settled else said

    def _bring_about(self, fault: TrialFault) -> str:
        target = fault.target(self.seen)
        self.seen.act(target)
        match fault.name:
            case "restart":
                self._api.post("mqtool/faults", {"fault": "restart"})
            case "cut":
                with suppress(NotFound):
                    self._api.delete(path("connections", target))
        return fault.say.format(target)


def hint(goal: Goal, asked: int) -> str:
    """Return the hint that the learner gets next, who has had `asked` hints of a goal; the last one again and again."""
    return goal.hints[min(asked, len(goal.hints) - 1)]
