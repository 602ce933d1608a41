"""Why a request did not reach the queue of an RPC server."""

from mqtool.errors import MqtoolError, NotConfirmed, Unavailable
from mqtool.message import Confirmation, Receipt
from mqtool.spelling import pasteable, starting_a_server


def refused_request(queue: str, receipt: Receipt) -> MqtoolError:
    """Return the error for a request that the broker has returned or refused."""
    if receipt.confirmation is Confirmation.NACKED:
        return NotConfirmed(
            f"the broker refused a request to queue {queue!r}", f"it may be full: {pasteable('queue show', queue)}"
        )
    return Unavailable(
        f"queue {queue!r} does not exist: no RPC server has declared it", f"start one: {starting_a_server(queue)}"
    )
