"""BrokerWindow: how many transfer frames a session may send, and the notices about a broker that accepts none.

https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-transport-v1.0-os.html#doc-session-flow-control
"""

from collections.abc import Callable

from mqtool.codecs.amqp10_frames import Begin, Flow, add, transfer_frames


class BrokerWindow:
    """The broker's incoming window in a session, and the ids of the session's deliveries. Used under its lock.

    Attributes:
        room: the number of transfer frames that the broker accepts now.
        next_id: the id of the next delivery.
        next_out: the id of the next transfer frame.

    Args:
        notice: called with a sentence for the user.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.room = self.next_id = self.next_out = 0
        self._notice = notice
        self._is_shut = self._has_told = False

    def begun(self, answer: Begin) -> None:
        """Process the broker's begin frame, which contains its window. The ids of the new session start at 0."""
        self.room, self.next_id, self.next_out = answer.incoming_window, 0, 0
        self._is_shut, self._has_told = not self.room, False

    def flow(self, flow: Flow) -> None:
        """Process a flow frame, which contains the broker's window. During an alarm, the window is 0."""
        if flow.next_incoming_id is None:
            return
        self.room = flow.incoming_window - add(self.next_out, -flow.next_incoming_id)
        self._is_shut = not flow.incoming_window
        if self._has_told and not self._is_shut:
            self._has_told = False
            self._notice("the broker has unblocked publishers")

    def has_more_than(self, room: int) -> bool:
        """True if the broker accepts more than this number of transfer frames."""
        return self.room > room

    def frames(self, handle: int, data: bytes, frame_max: int, *, settled: bool) -> list[bytes] | None:
        """Encode the frames of a message that is sent now; None if the broker has no room for them."""
        frames = transfer_frames(0, handle, self.next_id, self.next_id, data, frame_max, settled=settled)
        if len(frames) > self.room:
            return None
        self.next_id = add(self.next_id, 1)
        self.next_out = add(self.next_out, len(frames))
        self.room -= len(frames)
        return frames

    def tell(self) -> None:
        """Tell the user, once for each alarm, that something waits until the broker has room for it."""
        if self._is_shut and not self._has_told:
            self._has_told = True
            self._notice("the broker blocks publishers, and takes no declarations; waiting until it unblocks them")
