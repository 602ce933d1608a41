"""Lets a learner try a goal: prepares the broker, watches it, and says what is missing until the goal is reached.

records() of mqtool/ui ──> Seen ──> Goal.reached, Goal.mistakes ──> TrialFinding
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from mqtool.amqp import Connection
from mqtool.errors import NotFound, Unavailable, UsageError
from mqtool.inspection.upgrade import Version, running
from mqtool.management import Management, exchange_path, path
from mqtool.plays.goals.goal import Goal, Said, TrialFault
from mqtool.plays.goals.mistakes import to_unknown_exchange
from mqtool.plays.goals.seen import Json, Seen, lose_transient, since
from mqtool.stage.stage import undisturbed
from mqtool.taps import firehose_is_on, switch_firehose
from mqtool.ui.copies import Copies
from mqtool.ui.records import records

#: Seconds after which findings() yields None, so that its caller can do something else.
_LOOK = 0.1
#: A mistake is reported once the broker has reported no event for this many seconds: the learner may still be typing.
_SETTLES = 1.0
#: If events keep coming, a mistake is reported once it has persisted for this many seconds.
_STANDS = 3.0
#: What learners declare, as named in the paths of the management API.
_MADE = ("queues", "exchanges")
_QUEUE_TYPES = {"x-queue-type": "classic"}
#: Seconds to wait for the broker's first complete report.
_PATIENCE = 60.0
#: A mistake of Goal.patient is reported only after this many seconds without an event.
_PATIENT = 4.0
#: After this many seconds without an event, the learner is asked whether they use another broker.
_SILENCE = 20.0
#: After a goal is reached, its programs may still be running. The next goal begins after this many seconds without an
#: event, and at the latest after this many seconds.
_CALM, _CALM_AT_MOST = 0.7, 3.0

#: The first version of RabbitMQ that speaks AMQP 1.0 without a plugin, and with the addresses that mqtool uses.
_SPEAKS_AMQP_1_0 = Version(4, 0)


class TrialFinding(NamedTuple):
    """A sentence for the learner.

    Attributes:
        kind: what the sentence says: "mistake", what is wrong or missing; "fault", what `try` has done to the broker;
            "reached", why the goal is reached.
    """

    kind: Literal["mistake", "fault", "reached"]
    text: str


@dataclass(frozen=True)
class TrialBroker:
    """The broker on which goals are tried.

    Attributes:
        find: a function that returns the broker's management API.
        connect: opens a connection to the virtual host; used on RabbitMQ, to receive copies of messages.
        is_embedded: True if the broker reports each event.
        way: the command that selects the broker in the learner's terminals; empty if none is needed.
    """

    find: Callable[[], Management]
    vhost: str
    connect: Callable[[], Connection]
    is_embedded: bool
    way: str = ""


def why_not(goal: Goal, broker: TrialBroker) -> str:
    """Return the reason why a goal cannot be tried on a broker, as a clause, or "" if it can be tried."""
    if not broker.is_embedded and goal.only_embedded:
        return goal.only_embedded
    if goal.over_amqp10 and (version := running(broker.find())) < _SPEAKS_AMQP_1_0:
        return f"it behaves like RabbitMQ {version}, and does not speak AMQP 1.0"
    return ""


def is_embedded(api: Management) -> bool:
    """Return True if this is the API of an embedded broker, which reports each event."""
    with suppress(NotFound):
        list(api.items("mqtool/faults"))
        return True
    return False


@contextmanager
def own_vhost(api: Management, name: str, user: str) -> Iterator[None]:
    """Context manager: add a virtual host for the learner alone; at the end, delete it with everything in it."""
    try:
        api.put(path("vhosts", name), {})
        api.put(path("permissions", name, user), {"configure": ".*", "write": ".*", "read": ".*"})
        yield
    finally:
        with undisturbed(), suppress(NotFound):
            api.delete(path("vhosts", name))


class Trial:
    """A context manager that watches a virtual host while goals are tried there, one after the other.

    Args:
        silence: seconds without any event after which the learner is asked whether they use another broker.
    """

    def __init__(self, broker: TrialBroker, silence: float = _SILENCE) -> None:
        self.seen = Seen()
        self._silence = silence
        self._has_asked_where = False
        self._is_first = True
        self._before: dict[str, set[str]] = {}
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
        api, vhost = self._broker.find(), self._broker.vhost
        try:
            for record in records(self._broker.find, vhost, "", self._copy):
                if self._over.is_set():
                    return
                with suppress(NotFound, Unavailable):  # the next record repeats the request
                    if "settled" in record and not firehose_is_on(api, vhost):  # RabbitMQ was restarted
                        switch_firehose(api, vhost, on=True)
                self._records.put(record)
        except Exception as error:  # raised by _take(), in the caller's thread
            self._records.put(error)

    def _take(self, seconds: float) -> bool:
        """Process the records that have arrived; wait if there are none. Return True if they changed the history."""
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
        """Declare the queues and bindings that the goal needs. Only what happens from now on counts for the goal."""
        if not self._is_first:
            self._calm_down()
        self._is_first = False
        if self._broker.way:  # without such a command, all goals are tried on the same broker
            self._has_asked_where = False
        vhost = self._broker.vhost
        self._before = {kind: {each["name"] for each in self._api.items(path(kind, vhost))} for kind in _MADE}
        self._prepare(goal)

    def _calm_down(self) -> None:
        """Wait until nothing happens any more, so that late events do not count for the next goal."""
        begun_at = changed_at = time.monotonic()
        while (now := time.monotonic()) - changed_at < _CALM and now - begun_at < _CALM_AT_MOST:
            before = self.seen.now
            self._take(_LOOK)
            if self.seen.now != before:
                changed_at = time.monotonic()

    def prepare_again(self, goal: Goal) -> list[str]:
        """Delete the queues and exchanges that are new since prepare(), purge the other queues, and prepare again.

        Returns: the names of the deleted queues and exchanges. Exclusive queues stay, since a running client uses them.
        """
        vhost, deleted = self._broker.vhost, []
        for kind in _MADE:
            for each in self._api.items(path(kind, vhost)):
                name, is_new = each["name"], each["name"] not in self._before[kind]
                target = [kind, vhost, name] if is_new else ["queues", vhost, name, "contents"]
                if each.get("exclusive") or (kind == "exchanges" and not is_new):
                    continue
                with suppress(NotFound, UsageError):  # already gone, or a stream, which cannot be purged
                    self._api.delete(path(*target))
                    deleted += [name] if is_new and name not in goal.queues else []
        self._prepare(goal)
        return deleted

    def _prepare(self, goal: Goal) -> None:
        vhost = self._broker.vhost
        for name, arguments in goal.queues.items():
            body = {"durable": True, "arguments": {**_QUEUE_TYPES, **arguments}}
            with suppress(NotFound):
                self._api.delete(path("queues", vhost, name))
            self._api.put(path("queues", vhost, name), body)
        for exchange, kind, key, queue in goal.bindings:
            self._api.put(exchange_path(vhost, exchange), {"type": kind, "durable": False})
            self._api.post(path("bindings", vhost, "e", exchange, "q", queue), {"routing_key": key})
        deadline = time.monotonic() + _PATIENCE
        topologies = self.seen.topologies
        self._take(_LOOK)
        while not self._is_prepared(goal, topologies) and time.monotonic() < deadline:
            self._take(_LOOK)
        self.seen.begin()

    def _is_prepared(self, goal: Goal, topologies: int) -> bool:
        """Return True if the topology was read more than `topologies` times, and contains the goal's queues."""
        known, is_new = self.seen.queues, self.seen.topologies > topologies
        return not goal.queues or (
            is_new
            and all(
                name in known and all(known[name]["arguments"].get(key) == value for key, value in arguments.items())
                for name, arguments in goal.queues.items()
            )
        )

    def findings(self, goal: Goal) -> Iterator[TrialFinding | None]:
        """Yield findings for the learner until the goal is reached; while there are none, yield None every 0.1 s.

        A mistake is reported again only if the learner makes it again. Otherwise, a mistake that is still there would
        hide all others.
        """
        mistake = ""
        #: The reported mistakes that are still true; the latest report; all mistakes that were true at that time.
        told, latest, beside = set[str](), "", set[str]()
        told_at = self.seen.begun
        changed_at = happened_at = mistaken_since = time.monotonic()
        what_was = self._what_is()
        while True:
            if self._take(_LOOK):
                changed_at = time.monotonic()
            if (what_is := self._what_is()) != what_was:
                what_was, happened_at = what_is, time.monotonic()
            seen = self.seen
            if (fault := goal.fault) and (fault.is_repeated or not seen.acted) and fault.when(seen):
                yield TrialFinding("fault", self._bring_about(fault))
            if proof := goal.reached(seen):
                yield TrialFinding("reached", proof)
                return
            now = time.monotonic()
            is_quiet = now - changed_at > _SETTLES
            is_calm = now - happened_at > _PATIENT
            every = (to_unknown_exchange, *goal.mistakes)
            said = (each for each in every if is_calm or each not in goal.patient)
            true = {each: text for each in said if (text := each(seen))}
            if is_quiet:
                told &= {*true.values()}
                beside = beside if latest in told else set()
            again = self._made_since(told_at, true) if is_quiet and told else set[Said]()
            new = (text for each, text in true.items() if text not in told | beside or each in again)
            before, mistake = mistake, next(new, "")
            if mistake != before:
                mistaken_since = now
            if mistake and (is_quiet or now - mistaken_since > _STANDS):
                told, latest, beside, told_at = {*told, mistake}, mistake, {*true.values()}, seen.now
                yield TrialFinding("mistake", mistake)
            elif not self._has_asked_where and now - happened_at > self._silence and self._may_be_elsewhere(goal):
                self._has_asked_where = True
                yield TrialFinding("mistake", self._where())
            else:
                yield None

    def _what_is(self) -> tuple[int, ...]:
        """Return numbers, at least one of which changes with each event.

        They show whether anything has happened: on RabbitMQ, records arrive even if there are no events.
        """
        seen = self.seen
        return seen.now, len(seen.queues), len(seen.bindings), len(seen.consumers)

    def _made_since(self, moment: int, mistakes: Iterable[Said]) -> set[Said]:
        """Return the mistakes that show in the messages since the event `moment`; none if there are no such messages.

        Mistakes that show without any message, such as a wrong binding, do not count as made again.
        """
        later, none = since(self.seen, moment), since(self.seen, self.seen.now)
        if not later.messages and not to_unknown_exchange(later):
            return set()
        return {each for each in mistakes if each(later) and not each(none)}

    def _may_be_elsewhere(self, goal: Goal) -> bool:
        """Return True if the learner's commands may be using another broker.

        If the learner needs no command to select this broker, return False once a client has done anything on it.
        """
        if self._broker.way:
            return True
        made = self.seen.queues.keys() - self._before["queues"] - goal.queues.keys()
        return not (self.seen.now or self.seen.consumers or made)

    def _where(self) -> str:
        if self._broker.way:
            what = "Nothing new has" if self.seen.messages else "No message has"
            return (
                f"{what} reached this broker for some time. Have you run this command in the terminal that sends?\n"
                f"  {self._broker.way}\nIf a command has failed there, read its error."
            )
        said = "Nothing has reached this broker yet. If a command has failed, read its error. "
        return f"{said}If your other terminals use another broker, run this command in them: unset MQTOOL_URL AMQP_URL"

    def _bring_about(self, fault: TrialFault) -> str:
        target = fault.target(self.seen)
        self.seen.act(target)
        match fault.name:
            case "restart":
                self._api.post("mqtool/faults", {"fault": "restart"})
                lose_transient(self.seen)
            case "cut":
                with suppress(NotFound):
                    self._api.delete(path("connections", target))
        return fault.say.format(target)


def hint(goal: Goal, asked: int) -> str:
    """Return the next hint for a learner who has already seen `asked` hints of a goal; the last hint is repeated."""
    return goal.hints[min(asked, len(goal.hints) - 1)]
