"""Goals of the stream tutorials."""

from itertools import pairwise

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal, Said
from mqtool.plays.goals.seen import Seen, SeenCopy

_STREAM, _TRACKED = "hello-python-stream", "stream-offset-tracking-python"
_UNSEEN = "RabbitMQ does not report what is read from a stream"


def _read_by(seen: Seen, stream: str) -> dict[str, list[SeenCopy]]:
    """Return, for each reader, the copies that it has read, in order; empty if nobody has read any."""
    found: dict[str, list[tuple[int, SeenCopy]]] = {}
    for copy in seen.copies_in(stream):
        for each in copy.deliveries:
            found.setdefault(each.receiver, []).append((each.at, copy))
    return {reader: [copy for _, copy in sorted(some, key=lambda one: one[0])] for reader, some in found.items()}


#: The hint for learners who write their own program.
_STREAM_ARGUMENTS = (
    'in a program, declare the stream with the arguments {"x-queue-type": "stream"}, set a prefetch limit with '
    'basic_qos(), and consume with the arguments {"x-stream-offset": '
)


def _without_offset(stream: str) -> Said:
    """Return a function that reports a consumer of this stream that misses the messages sent before it started."""

    def said(seen: Seen) -> str:
        copies = seen.copies_in(stream)
        if not copies or not any(each.queue == stream for each in seen.consumers):
            return ""
        if any(each.at > copies[0].at for copy in copies for each in copy.deliveries):
            return ""
        return (
            f"A reader has started, but did not receive {copies[0].message}: without an offset, it receives only new "
            "messages. Begin at the offset 'first' (the argument x-stream-offset)."
        )

    return said


def _twice(seen: Seen) -> str:
    for copy in seen.copies_in(_STREAM):
        if len(readers := [*dict.fromkeys(each.receiver for each in copy.deliveries)]) > 1:
            names = " and ".join(seen.called(each) for each in readers)
            return f"{names} have both read {copy.message}: reading removes nothing from a stream."
    return ""


def _once(seen: Seen) -> str:
    if len(readers := _read_by(seen, _STREAM)) == 1 and not _no_stream(seen):
        return f"One reader has read {next(iter(readers.values()))[0].message}. Now let another reader read it, too."
    return ""


def _different(seen: Seen) -> str:
    if not _read_by(seen, _STREAM) or _no_stream(seen):
        return ""
    return "Each message was read by only one reader. Start another reader at the first offset."


def _no_stream(seen: Seen) -> str:
    queue = seen.queues.get(_STREAM)
    if not queue or queue["type"] == "stream":
        return ""
    return (
        f"{_STREAM!r} is a {queue['type']} queue, not a stream. Delete the queue, and declare it with the argument "
        "x-queue-type 'stream'."
    )


_READ_TWICE = Goal(
    "read-twice",
    f"Send a message to the stream {_STREAM!r}. Let two readers read it, one after the other.",
    _twice,
    (
        _no_stream,
        mistakes.not_sent_to(_STREAM),
        _without_offset(_STREAM),
        _once,
        _different,
        mistakes.nobody_receives(_STREAM),
    ),
    (
        "A message in a queue is gone once it is acknowledged. What if the next reader needs it, too?",
        "Streams: consuming is non-destructive; a consumer says at which offset it begins.",
        f"one after the other:\n  mqtool send-stream hi\n  mqtool receive-stream -c 1\n  mqtool receive-stream -c 1\n"
        f'{_STREAM_ARGUMENTS}"first"}}',
    ),
    only_embedded=_UNSEEN,
)


def _resumed(seen: Seen) -> str:
    stream = seen.copies_in(_TRACKED)
    readers = [*_read_by(seen, _TRACKED).items()]
    for (first, before), (second, after) in pairwise(readers):
        at = stream.index(before[-1]) + 1
        last = before[-1].deliveries[-1]
        if at < len(stream) and after[0] is stream[at] and _came_later(after[0], last.at, second):
            ended, went_on = before[-1].message, after[0].message
            return f"{seen.called(first)} read up to {ended}; {seen.called(second)} continued with {went_on}."
    return ""


def _came_later(copy: SeenCopy, at: int, reader: str) -> bool:
    """Return True if the copy was appended after the event with the number `at`, and before the reader started."""
    (delivery,) = [each for each in copy.deliveries if each.receiver == reader][:1]
    return copy.at > at and delivery.milliseconds - copy.message.milliseconds > 100


def _from_the_start(seen: Seen) -> str:
    readers = [*_read_by(seen, _TRACKED).values()]
    if len(readers) > 1 and readers[-1][0] is readers[0][0]:
        return (
            f"The second reader began with {readers[0][0].message} again. Where had the first reader stored its offset?"
        )
    return ""


def _missed(seen: Seen) -> str:
    readers = [*_read_by(seen, _TRACKED).values()]
    return "The second reader did not continue where the first one ended." if len(readers) > 1 else ""


def _one_reader(seen: Seen) -> str:
    if len(readers := [*_read_by(seen, _TRACKED).values()]) == 1:
        return f"A reader has read {readers[0][-1].message}. Stop the reader, send more messages, and start it again."
    return ""


_RESUMED = Goal(
    "resumed",
    f"Send some messages to the stream {_TRACKED!r}, and read them. Stop the reader, send more messages, and start the "
    "reader again. It has to continue with the first message that it has not read.",
    _resumed,
    (mistakes.not_sent_to(_TRACKED), _from_the_start, _missed, _without_offset(_TRACKED), _one_reader),
    (
        "Messages stay in a stream after they are acknowledged. Who remembers how far a reader has read?",
        "Offset tracking: a reader stores the offset of the last message that it has handled; after a restart, it "
        "resumes with the next one.",
        f"run these two commands, and then both again:\n  mqtool send-stream -q {_TRACKED} a\n"
        f"  mqtool receive-stream -q {_TRACKED} --track me -c 1\n"
        f"{_STREAM_ARGUMENTS}N}}, where N is one more than the last offset that was read (the header x-stream-offset)",
    ),
    only_embedded=_UNSEEN,
)

GOALS, TRACKING_GOALS = (_READ_TWICE,), (_RESUMED,)
