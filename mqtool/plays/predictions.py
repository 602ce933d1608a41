"""Questions that plays ask before a scene, with their answers. The learner predicts what will happen in the scene."""

from mqtool.stage.stage import Question

FAIR_DISPATCH = Question(
    "One worker gets the long task. How many of the five quick tasks does this worker do?",
    "None. While it works on the long task, it gets no other task. The other worker does all five quick tasks.",
)
ROUND_ROBIN = Question(
    "The same six tasks are sent again. How many of them does the worker with the long task get now?",
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
    "A durable queue has a message that is persistent and one that is not. Which of them survives the restart?",
    "Only the persistent one. The queue itself survives, since it is durable.",
)
UNBOUND_EXCHANGE = Question(
    "Where does the message wait until a receiver starts?",
    "Nowhere. An exchange keeps no messages: without a bound queue, it drops them, or returns them if the publisher "
    "wants them back.",
)
FANOUT = Question(
    "Two messages are sent, and two receivers are running. How many messages does each receiver get?",
    "Two: each receiver's queue gets a copy of each message. The receivers do not share them, as workers would.",
)
DIRECT = Question(
    "Four messages are sent, one for each severity: info, debug, warning, error. Who gets the debug message?",
    "Nobody. No queue is bound with the key debug. The broker returns the message, because the emitter wants such "
    "messages back; otherwise, the broker would drop it.",
)
NAMED_QUEUE = Question(
    "A critical message was sent while no receiver ran. Does the receiver get the message when it starts again?",
    "Yes. The queue has a name, so it was not deleted with the receiver. It has kept its bindings and the message.",
)
TWO_BINDINGS = Question(
    "kern.critical matches both patterns of the third receiver. How many times does that receiver get the message?",
    "Once. A queue gets one copy of a message, however many of its bindings match.",
)
WORDS = Question(
    "One receiver has the pattern 'kern.#', the other 'kern.*.*'. Who gets keys of one, two and three words?",
    "'kern.#' gets all three keys, since # matches zero or more words. 'kern.*.*' gets only the key of three words.",
)
EMPTY_KEY = Question(
    "Does '*' match an empty key? Does '#.*' match the key '..'? Does '#.*' match a key of one word?",
    "'*' does not match an empty key, since * stands for exactly one word. '#.*' matches '..' and keys of one word.",
)
ONE_OR_MORE = Question(
    "How does 'a.*.#' differ from 'a.#'?", "'a.*.#' needs at least one word after 'a'; 'a.#' also matches 'a' alone."
)
HEADERS = Question(
    "Two messages have one of the headers, one message has none, and one has both. How many does each receiver get?",
    "The first receiver gets one message, with both headers. The second gets three, each with at least one header.",
)
