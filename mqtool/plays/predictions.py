"""The questions that plays ask before a scene: the learner predicts what will happen, sees it, and reads the answer."""

from mqtool.stage.stage import Question

FAIR_DISPATCH = Question(
    "One worker gets the long task. How many of the five quick ones does it do?",
    "None. While it works on the long task, it gets no other; the other worker does all five.",
)
ROUND_ROBIN = Question(
    "The same six tasks again. How many of them does the worker with the long task get now?",
    "Three: every second one. Two quick tasks wait behind the long one, while the other worker has nothing to do.",
)
KILLED_WORKER = Question(
    "Worker 1 has the task and is killed before it is done. Is the task lost?",
    "No. It was not acknowledged, so the broker delivers it again, to worker 2.",
)
FORGOTTEN_ACKNOWLEDGEMENT = Question(
    "Worker 1 has done all three tasks, and ends. What does worker 2 get?",
    "All three tasks again: only an acknowledgement tells the broker that a task is done.",
)
RESTARTED_BROKER = Question(
    "A durable queue has a message that is persistent and one that is not. Which of them is there after the restart?",
    "Only the persistent one. The queue itself survives, since it is durable.",
)
UNBOUND_EXCHANGE = Question(
    "Where does the message wait until a receiver comes?",
    "Nowhere. An exchange keeps no messages: without a bound queue, it drops them or, if the publisher asks for that, "
    "returns them.",
)
FANOUT = Question(
    "Two messages, two receivers. How many messages does each receiver get?",
    "Two: each receiver's queue gets a copy of each message. The receivers do not share them, as workers would.",
)
DIRECT = Question(
    "Four severities are sent: info, debug, warning, error. Who gets debug?",
    "Nobody. No queue is bound with the key debug. The exchange returns the message, since the emitter asks for that; "
    "otherwise it would drop it.",
)
NAMED_QUEUE = Question(
    "A critical message is sent while nobody reads. Does the receiver get it when it starts again?",
    "Yes. The queue has a name, stays with its bindings, and has kept the message.",
)
TWO_BINDINGS = Question(
    "kern.critical matches both patterns of the third receiver. How often does that receiver get it?",
    "Once. A queue gets one copy of a message, however many of its bindings match.",
)
WORDS = Question(
    "'kern.#' and 'kern.*.*': who gets the keys of one, two, three words?",
    "'kern.#' gets all three, since # is zero words or more. 'kern.*.*' gets the one of three words.",
)
EMPTY_KEY = Question(
    "Does '*' match an empty key? Does '#.*' match the key '..'? And a key of one word?",
    "'*' does not match an empty key, since it is exactly one word. '#.*' matches both '..' and one word.",
)
ONE_OR_MORE = Question(
    "How does 'a.*.#' differ from 'a.#'?", "'a.*.#' needs at least one word after a; 'a.#' also matches a alone."
)
HEADERS = Question(
    "Four messages: two have one of the headers, one has none, one has both. How many does each receiver get?",
    "The first gets one message, with both headers. The second gets three, with at least one.",
)
