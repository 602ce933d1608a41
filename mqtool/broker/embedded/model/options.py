"""What the arguments of a queue ask for."""

from dataclasses import dataclass

from mqtool.routing.field_table import Table


@dataclass
class Options:
    """The arguments of queue.declare; times in milliseconds, sizes in bytes, None for no limit."""

    message_ttl: int | None = None
    expires: int | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: str = "drop-head"
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    max_priority: int | None = None
    single_active: bool = False
    delivery_limit: int | None = None

    @classmethod
    def of(cls, arguments: Table) -> "Options":
        """Read them from arguments that have been validated."""

        def integer(name: str) -> int | None:
            value = arguments.get(name)
            return int(value) if isinstance(value, int) else None

        def string(name: str) -> str | None:
            value = arguments.get(name)
            return value if isinstance(value, str) else None

        return cls(
            message_ttl=integer("x-message-ttl"),
            expires=integer("x-expires"),
            max_length=integer("x-max-length"),
            max_length_bytes=integer("x-max-length-bytes"),
            overflow=string("x-overflow") or "drop-head",
            dead_letter_exchange=string("x-dead-letter-exchange"),
            dead_letter_routing_key=string("x-dead-letter-routing-key"),
            max_priority=integer("x-max-priority"),
            single_active=arguments.get("x-single-active-consumer") is True,
            delivery_limit=integer("x-delivery-limit"),
        )

    def exceeded(self, messages: int, size: int) -> bool:
        """Whether this many ready messages, with bodies of this size together, are too many."""
        return (self.max_length is not None and messages > self.max_length) or (
            self.max_length_bytes is not None and size > self.max_length_bytes
        )

    def time_to_live(self, expiration: str | None) -> int | None:
        """Return the shorter of the queue's time to live and a message's own."""
        if expiration is None:
            return self.message_ttl
        return int(expiration) if self.message_ttl is None else min(self.message_ttl, int(expiration))
