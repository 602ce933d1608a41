"""Goals of the rpc tutorial."""

from collections import Counter

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenMessage

_RPC = "rpc_queue"


def _requests(seen: Seen) -> list[SeenMessage]:
    return [copy.message for copy in seen.copies_in(_RPC)]


def _replies(seen: Seen, request: SeenMessage) -> list[SeenMessage]:
    """Return the replies: all messages that were sent to the request's reply_to after the request; empty if none."""
    to = request.properties.get("reply_to")
    direct = to == "amq.rabbitmq.reply-to"
    return [
        each
        for each in seen.messages
        if each.at > request.at and to and (each.reply_to == request.connection if direct else each.routing_key == to)
    ]


def _answer(seen: Seen, request: SeenMessage) -> SeenMessage | None:
    """Return the reply with the request's correlation ID; None if there is none."""
    identity = request.properties.get("correlation_id")
    found = (each for each in _replies(seen, request) if each.properties.get("correlation_id") == identity)
    return next(found, None) if identity else None


def _received(seen: Seen, request: SeenMessage) -> SeenMessage | None:
    """Return the reply with the request's correlation ID if the requesting connection got it; otherwise None."""
    answer = _answer(seen, request)
    if answer is None or answer.reply_to == request.connection:
        return answer
    receivers = (each.receiver for copy in answer.copies for each in copy.deliveries)
    return answer if any(each.startswith(request.connection) for each in receivers) else None


def _gave_up(seen: Seen) -> str:
    for request in reversed(_requests(seen)):
        answer = _answer(seen, request)
        if answer is not None and _received(seen, request) is None:
            return (
                f"The server replied to {request}, but the connection that had sent the request did not get the reply. "
                "The client may have given up."
            )
    return ""


def _three_answers(seen: Seen) -> str:
    pairs = [(each, answer) for each in _requests(seen) if (answer := _received(seen, each)) is not None]
    for request, _ in pairs:
        alike = [pair for pair in pairs if pair[0].connection == request.connection]
        if len({pair[0].properties["correlation_id"] for pair in alike}) >= 3:
            shown = ", ".join(f"{asked} got {answer}" for asked, answer in alike)
            return f"{shown}: the correlation IDs say which reply belongs to which request."
    return ""


def _unlike(seen: Seen) -> str:
    for request in _requests(seen):
        replies = _replies(seen, request)
        identities = {each.properties.get("correlation_id") for each in _requests(seen)}
        others = [each for each in replies if each.properties.get("correlation_id") not in identities - {None}]
        if others:
            return f"The reply {others[0]} does not have the correlation ID of any request, so it answers none of them."
    return ""


def _no_reply_to(seen: Seen) -> str:
    lost = [each for each in _requests(seen) if not each.properties.get("reply_to")]
    return f"The request {lost[-1]} does not say where the reply should go (reply_to)." if lost else ""


def _few(seen: Seen) -> str:
    answered = Counter(each.connection for each in _requests(seen) if _received(seen, each))
    if not answered:
        return ""
    if _same_identity(seen):
        return ""
    return f"One client has to get three replies; no client has got more than {max(answered.values())} so far."


def _same_identity(seen: Seen) -> str:
    clients: dict[str, list[SeenMessage]] = {}
    for request in _requests(seen):
        clients.setdefault(request.connection, []).append(request)
    for requests in clients.values():
        identities = {str(each.properties.get("correlation_id")) for each in requests}
        if len(requests) >= 3 and len(identities) < 3:
            return (
                f"Of {len(requests)} requests, some had the same correlation ID, {min(identities)!r}, so the client "
                "cannot tell their replies apart. Use a different ID for each request."
            )
    return ""


def _no_server(seen: Seen) -> str:
    waiting = [each for each in _requests(seen) if not _replies(seen, each)]
    return f"Nobody has answered {waiting[-1]} yet. Is a server running?" if waiting else ""


_ANSWERED = Goal(
    "answered",
    "Start a server on 'rpc_queue'. Let one client send three requests, and get three replies. Each reply must have "
    "the correlation ID of its request.",
    _three_answers,
    (mistakes.not_sent_to(_RPC), _no_reply_to, _same_identity, _unlike, _gave_up, _no_server, _few),
    (
        "Three replies come back over one queue. How does the client know which request each reply answers?",
        "Correlation ID: the client sets it to a unique value for every request, and the server copies it to the "
        "reply.",
        "in one terminal:\n  mqtool rpc-server\nin another one:\n  mqtool rpc-client 6 7 8",
    ),
)


def _late(seen: Seen) -> str:
    for copy in seen.copies_in(_RPC):
        if copy.waited and _received(seen, copy.message) is not None:
            return (
                f"The request {copy.message} waited in 'rpc_queue' until {seen.called(copy.receiver)} started, and its "
                "client got the reply."
            )
    return ""


def _was_there(seen: Seen) -> str:
    answered = [copy for copy in seen.copies_in(_RPC) if not copy.waited and _received(seen, copy.message)]
    return (
        f"{answered[-1].message} was answered immediately. Stop the server, and send another request."
        if answered
        else ""
    )


def _start_it(seen: Seen) -> str:
    waiting = [copy.message for copy in seen.copies_in(_RPC) if not copy.deliveries and not copy.end]
    if not waiting:
        return ""
    return f"The request {waiting[-1]} waits in 'rpc_queue'. Now start the server, before the client gives up."


_LATE = Goal(
    "late-server",
    "Send a request to 'rpc_queue' while no server is running. Start the server before the client gives up, so that "
    "the client gets a reply.",
    _late,
    (mistakes.not_sent_to(_RPC), _no_reply_to, _unlike, _start_it, _gave_up, _was_there, _no_server),
    (
        "Is a request in a queue lost if no server is running?",
        "The request waits in the queue like any message. How long a client waits for the reply is up to the client.",
        "in one terminal, once the queue exists:\n  mqtool rpc-client 30\nimmediately afterwards, in another one:\n"
        "  mqtool rpc-server",
    ),
)

GOALS = (_ANSWERED, _LATE)
