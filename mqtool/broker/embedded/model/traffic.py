"""How many messages have come to a queue, and gone."""

from dataclasses import dataclass


@dataclass(eq=False)
class Traffic:
    """How many messages have come and gone."""

    published: int = 0
    delivered: int = 0
    acknowledged: int = 0
    redelivered: int = 0
    delivered_no_ack: int = 0
    got: int = 0
    got_no_ack: int = 0

    def counts(self) -> dict[str, int]:
        """Return the numbers by RabbitMQ's names."""
        return {
            "publish": self.published,
            "deliver_get": self.delivered,
            "deliver": self.delivered - self.delivered_no_ack - self.got - self.got_no_ack,
            "get": self.got,
            "deliver_no_ack": self.delivered_no_ack,
            "get_no_ack": self.got_no_ack,
            "ack": self.acknowledged,
            "redeliver": self.redelivered,
        }
