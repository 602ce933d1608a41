"""Say what queues would lose by a change of policies."""

from collections.abc import Sequence

from mqtool.cli.display import output
from mqtool.spelling import counted
from mqtool.work.policy_losses import Loss

#: The maximum number of queues to name that would lose messages.
_SHOWN = 10


def warn_of(lost: Sequence[Loss]) -> None:
    """Warn of what queues would lose."""
    for each in lost[:_SHOWN]:
        output.warning(f"queue {each.queue!r} {each.why}")


def cost_of(lost: Sequence[Loss]) -> str:
    """Return what follows the name of the change: how many messages are removed, or deleted with their queues."""
    parts = ""
    for at_restart, when in ((False, ""), (True, " when RabbitMQ restarts")):
        dropping = [each for each in lost if not each.of_queue and each.at_restart is at_restart]
        if dropping:
            counts = [each.messages for each in dropping if each.messages is not None]
            messages = counted(sum(counts)) if len(counts) == len(dropping) else "messages"
            parts += f", and remove {messages} from {counted(len(dropping), 'queue')}{when}"
    if expiring := [each for each in lost if each.of_queue]:
        messages = counted(sum(each.messages or 0 for each in expiring))
        parts += f", and let {counted(len(expiring), 'queue')} with {messages} expire"
    return parts
