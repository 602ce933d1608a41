"""Goals of `tutorial try`: learners reach them with commands or programs, while `try` watches only the broker.

Each file NAME_goals.py contains the goals of a tutorial, and the functions that judge the history of the broker
(seen.py). To write one, add a Goal to GOALS of such a file. `ask` describes the task. `reached` returns a sentence once
the goal is reached, and "" until then. Each function in `mistakes` returns a sentence that says what is wrong, or "":
the learner sees the first one, so list the most specific first, and those that only say that more is needed in
`patient` as well, which delays them. `hints` are three texts: a question, the concept by its name in the official
tutorial, and the commands, each on its own line, indented by two spaces. All functions take a Seen; mistakes.py has
some that many goals use. If a goal works only on the embedded broker, `only_embedded` says why.

In tests/goals/NAME_attempts.py, write attempts that reach the goal with commands and with plain pika, and at least
three wrong ones, each with the sentence that the learner sees, one of them an attempt to cheat. To run them: `pytest
tests/goals/test_goals.py -k NAME.GOAL --on-both-brokers`.
"""

from mqtool.plays.goals import (
    amqp10_goals,
    delayed_messages_goals,
    headers_goals,
    hello_world_goals,
    publish_subscribe_goals,
    publisher_confirms_goals,
    repair_goals,
    routing_goals,
    rpc_goals,
    stream_goals,
    topics_goals,
    work_queues_goals,
)
from mqtool.plays.goals.goal import Goal

#: The goals of each tutorial, in the recommended order.
GOALS: dict[str, tuple[Goal, ...]] = {
    "hello-world": hello_world_goals.GOALS,
    "work-queues": work_queues_goals.GOALS,
    "publish-subscribe": publish_subscribe_goals.GOALS,
    "routing": routing_goals.GOALS,
    "topics": topics_goals.GOALS,
    "headers": headers_goals.GOALS,
    "rpc": rpc_goals.GOALS,
    "publisher-confirms": publisher_confirms_goals.GOALS,
    "delayed-messages": delayed_messages_goals.GOALS,
    "stream-hello-world": stream_goals.GOALS,
    "stream-offset-tracking": stream_goals.TRACKING_GOALS,
    "amqp10-hello-world": amqp10_goals.HELLO_WORLD_GOALS,
    "amqp10-work-queues": amqp10_goals.WORK_QUEUES_GOALS,
    "repair": repair_goals.GOALS,
}
#: The title and the story of the goals "repair", which belong to no tutorial.
REPAIR = ("Repair", "Short programs with one defect each.")
