"""A goal of `tutorial try`: a task for the learner, and functions that judge what the learner has done.

Each function takes the history of the broker (seen.py), and returns a sentence, or "" if there is nothing to say. These
functions print nothing, and do nothing to the broker.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mqtool.plays.goals.seen import Seen

#: Returns a sentence about the history of the broker; "" if there is nothing to say.
Said = Callable[[Seen], str]


@dataclass(frozen=True)
class TrialFault:
    """A fault that `try` causes while the learner works on a goal.

    Attributes:
        name: "restart" (of the broker), or "cut" (the connection that `target` returns).
        when: takes the history; returns True when the fault is due.
        say: a sentence that tells the learner about the fault; {} stands for the target.
        target: takes the history; returns the name of the connection to cut, or "" for a restart.
        is_repeated: True to cause the fault each time `when` returns True, not only the first time.
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
        name: the name of the goal in the list and in the state file; unique within its tutorial.
        ask: what the learner has to achieve, in one to three sentences.
        reached: takes the history; returns a sentence that says why the goal is reached, or "" until then.
        mistakes: functions that take the history, and return what is wrong or missing, or "". The learner sees the
            first sentence that is not empty.
        patient: the functions in `mistakes` whose sentences are shown only after some seconds without any event,
            because what is missing may be on its way.
        hints: a question that makes the learner think; the concept, by its name in the official tutorial; commands,
            each on a line of its own, which begins with two spaces.
        queues, bindings: what is declared before the goal begins: queues with their arguments, and bindings as
            exchange, type, key and queue.
        fault: a fault that `try` causes while the learner works on the goal, if any.
        only_embedded: why `try` cannot see on RabbitMQ whether the goal is reached, as a clause; empty if it can.
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
