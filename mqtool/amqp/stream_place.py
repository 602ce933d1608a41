"""Where a consumer of a stream goes on after a reconnection: a stream does not know what it has delivered."""

from typing import Any

from mqtool.message import Delivery
from mqtool.offsets import Offset, Start


class StreamPlace:
    """The place of a consumer in a stream.

    Args:
        offset: where to start; None is what comes next.
    """

    def __init__(self, offset: Offset | None) -> None:
        self._offset = offset

    def behind(self, delivery: Delivery) -> None:
        """The caller takes a delivery."""
        number = delivery.headers.get("x-stream-offset")
        if isinstance(number, int):
            self._offset = Offset(Start.OFFSET, number + 1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of basic.consume."""
        return {} if self._offset is None else {"x-stream-offset": self._offset.as_argument()}
