"""What newer versions of RabbitMQ refuse: the words for it, and the broker's error texts that mean it.

`doctor --upgrade` describes objects and clients in these words, and `pytest --amqp-like` explains failed tests in them.
The error texts are those of RabbitMQ and of the embedded broker.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple


class VersionRefusal(NamedTuple):
    """Something that RabbitMQ refuses from some version on.

    Attributes:
        deed: what a program does, such as "declares a queue that is …,". `{name}` is a named group of `error`.
        verdict: the rest of the sentence, such as "which RabbitMQ 4.3 refuses".
        error: a regular expression that finds the refusal in an error text. Spaces in it also match line breaks.
    """

    deed: str
    verdict: str
    error: str

    def is_in(self, text: str) -> bool:
        """True if an error text means this refusal."""
        return self._found(text) is not None

    def cause(self, text: str) -> str | None:
        """Return what an error text means, as a sentence without its subject; None if it means something else."""
        found = self._found(text)
        return None if found is None else f"{self.deed.format(**found.groupdict())} {self.verdict}"

    def _found(self, text: str) -> re.Match[str] | None:
        unquoted = re.sub(r"""\\(['"])""", r"\1", text)  # as in the repr() of an error, and in JSON
        return re.search(self.error.replace(" ", r"\s+"), unquoted)


_FROM_ZERO = range(2**63 - 1)
#: The values that RabbitMQ 4.3.6 accepts for queue arguments for which 3.10.8 accepts more, by queue type: integers, or
#: None for any value. Types that are not named refuse the argument. Measured by declaring each argument with values
#: around its limits on queues of each type; for all other arguments, 4.3.6 accepts the same values or more.
ARGUMENTS: Mapping[str, Mapping[str, range | None]] = {
    "x-queue-master-locator": {},
    "x-queue-version": {"classic": range(2, 3)},
    "x-consumer-timeout": {"quorum": _FROM_ZERO},
    "x-consumer-disconnected-timeout": {"quorum": _FROM_ZERO},
    "x-delayed-retry-type": {"quorum": None},
    "x-delayed-retry-min": {"quorum": None},
    "x-delayed-retry-max": {"quorum": None},
    "x-stream-filter-size-bytes": {"stream": range(16, 256)},
}
#: The maximum number of `#` in a topic exchange's binding key, from 4.3.5 on.
MOST_WILDCARDS = 2
#: The smallest frame size, in bytes, that AMQP 0-9-1 clients can request from RabbitMQ 4.1 and later.
SMALLEST_FRAME = 8192
#: What RabbitMQ 4.0 changed about large messages.
LARGE_MESSAGES = "messages of more than 16 MiB are refused unless max_message_size allows them"

_REFUSED = "which RabbitMQ 4.3 refuses for a"
_OF_CLASSIC_QUEUE = f"{_REFUSED} classic queue"

TRANSIENT = VersionRefusal(
    "declares a queue that is transient and not exclusive,",
    "which RabbitMQ 4.3.0 to 4.3.5 refuse",
    "Feature [`']transient_nonexcl_queues[`'] is deprecated",
)
MASTER_LOCATOR = VersionRefusal(
    "declares a queue with the argument x-queue-master-locator,",
    _OF_CLASSIC_QUEUE,
    "Feature [`']queue_master_locator[`'] is deprecated",
)
CONSUMER_TIMEOUT = VersionRefusal(
    "uses the argument x-consumer-timeout,",
    _OF_CLASSIC_QUEUE,
    "invalid arg 'x-consumer-timeout' for queue .{1,600}? of queue type rabbit_classic_queue",
)
QUEUE_VERSION = VersionRefusal(
    "declares a queue with the argument x-queue-version={version},",
    _OF_CLASSIC_QUEUE,
    "unsupported queue version '(?P<version>1)'",
)
WILDCARDS = VersionRefusal(
    "binds a queue or an exchange with {count} # in its key,",
    f"and RabbitMQ 4.3.5 allows {MOST_WILDCARDS}",
    "Topic binding key '.{0,255}' uses (?P<count>[0-9]+) '#' wildcards",
)
DELAYED_EXCHANGE = VersionRefusal(
    "declares an x-delayed-message exchange, which needs",
    "the delayed message plugin, which has no release for RabbitMQ 4.3",
    "(?:unknown|invalid) exchange type '?x-delayed-message'?",
)
MIRRORED = VersionRefusal(
    "sets a policy that mirrors classic queues ({setting}),",
    "which RabbitMQ 4.0 no longer supports",
    r'<<"(?P<setting>ha-[a-z-]+)">>.{0,2000} are not recognised policy settings',
)
POLICY_LOCATOR = VersionRefusal(
    "sets a policy with queue-master-locator,",
    "which RabbitMQ 4.3 refuses",
    "use of deprecated queue-master-locator argument is not permitted",
)
LARGE_MESSAGE = VersionRefusal(
    "publishes a message of {size} bytes,",
    f"and from RabbitMQ 4.0 on, {LARGE_MESSAGES}",
    r"message size \(?(?P<size>[0-9]+)(?: bytes)?\)? (?:is larger than configured max size|> maximum message size) "
    r"\(?16777216\b",
)
SMALL_FRAMES = VersionRefusal(
    "asks for frames of {size} bytes,",
    f"and RabbitMQ 4.1 refuses less than {SMALLEST_FRAME:,}",
    rf"negotiated frame_max = (?P<size>[0-9]+) is lower than the minimum allowed value \({SMALLEST_FRAME}\)",
)
GLOBAL_PREFETCH = VersionRefusal(
    "consumes from a quorum queue with one prefetch limit for the whole channel (global=true), which is refused;",
    "from RabbitMQ 4.3 on, each consumer gets this limit",
    "NOT_IMPLEMENTED - queue .{1,600}? does not support global qos",
)
_ALL = (
    *(TRANSIENT, MASTER_LOCATOR, CONSUMER_TIMEOUT, QUEUE_VERSION, WILDCARDS, DELAYED_EXCHANGE),
    *(MIRRORED, POLICY_LOCATOR, LARGE_MESSAGE, SMALL_FRAMES, GLOBAL_PREFETCH),
)


def refused_argument(kind: str, name: str, value: object) -> str | None:
    """Return the argument of a queue of this type, and that RabbitMQ 4.3 refuses it; None if it does not.

    If other values are accepted, the text contains the value. It is as in "x-queue-version=1, which RabbitMQ …".
    """
    if name not in ARGUMENTS:
        return None
    verdict = f"{_REFUSED} {kind}{' queue' * (kind != 'stream')}"
    if kind not in (of_kinds := ARGUMENTS[name]):
        return f"{name}, {verdict}"
    accepted = of_kinds[kind]
    if accepted is None or (type(value) is int and value in accepted):
        return None
    limits = "" if len(accepted) == 1 else f" (it must be {accepted[0]} to {accepted[-1]})"
    return f"{name}={value}, {verdict}{limits}"


def cause(text: str) -> str | None:
    """Return what a program did that newer versions refuse, by the error text that it got; None if it is not known.

    The sentence lacks its subject: "declares a queue that is transient and not exclusive, which RabbitMQ …".
    """
    return next((found for each in _ALL if (found := each.cause(text)) is not None), None)
