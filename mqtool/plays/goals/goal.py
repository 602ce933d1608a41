"""A goal of `tutorial try`: what the learner has to do on a broker, as data and as functions of what was seen.

A function takes what was seen (seen.py) and returns a sentence, or "" if it does not apply. Such functions print
nothing, and do nothing to the broker.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mqtool.plays.goals.seen import Seen

#: Returns a sentence about what was seen; "" if there is nothing to say.
Said = Callable[[Seen], str]


@dataclass(frozen=True)
class TrialFault:
    """What `try` does to the broker in the middle of a goal.

    Attributes:
        name: "restart" (of the broker), or "cut" (the connection that `target` returns).
        when: returns True when it is time.
        say: a sentence that says what has been done; {} stands for the target.
        target: returns the name of the connection to cut; "" for a restart.
        is_repeated: True to do it each time when `when` returns True, and not only once.
    """

    name: str
    when: Callable[[Seen], bool]
    say: str
    target: Callable[[Seen], str] = field(default=lambda _: "")
    is_repeated: bool = False


@dataclass(frozen=True)
class Goal:
    """A goal of a tutorial.

    Attributes:
        name: names the goal in the list and in the state file; unique within its tutorial.
        ask: what to bring about, in one to three sentences.
        reached: returns the proof that the goal was reached, "" until then.
        mistakes: functions that say what is wrong or missing. The first sentence that one of them returns is shown.
        patient: the functions in `mistakes` whose sentences are shown only after some seconds without any event,
            because what is missing may be on its way.
        hints: a question that makes the learner think; the concept, by its name in the official tutorial; commands,
            each on a line of its own, which begins with two spaces.
        queues, bindings: what is declared before the goal begins: queues with their arguments, and bindings as
            exchange, type, key and queue.
        fault: what `try` does to the broker while the goal is tried, if anything.
        only_embedded: why the goal cannot be seen on RabbitMQ, as a clause; empty if it can.
        over_amqp10: True if the learner needs a broker that speaks AMQP 1.0.
        program: the program in mqtool/plays/repair that the learner has to fix; empty for none.
    """

    name: str
    ask: str
    reached: Said
    mistakes: tuple[Said, ...]
    hints: tuple[str, str, str]
    queues: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    bindings: tuple[tuple[str, str, str, str], ...] = ()
    patient: tuple[Said, ...] = ()
    fault: TrialFault | None = None
    only_embedded: str = ""
    over_amqp10: bool = False
    program: str = ""
