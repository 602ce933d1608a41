"""The settings of policies, and which types of queues do not support them."""

_OF_STREAMS = {"max-age", "stream-max-segment-size-bytes", "initial-cluster-size"}
_OF_MIRRORS = {
    "ha-mode",
    "ha-params",
    "ha-promote-on-failure",
    "ha-promote-on-shutdown",
    "ha-sync-batch-size",
    "ha-sync-mode",
    "queue-master-locator",
    "queue-mode",
}
_OF_RETRIES = {"delayed-retry-type", "delayed-retry-min", "delayed-retry-max"}
#: The settings that each type of queue does not support. A policy with any of them does not apply to such a queue.
UNSUPPORTED = {
    "classic": {*_OF_STREAMS, *_OF_RETRIES, "dead-letter-strategy", "delivery-limit", "queue-leader-locator"},
    "quorum": {*_OF_STREAMS, *_OF_MIRRORS},
    "stream": {
        *_OF_MIRRORS,
        *_OF_RETRIES,
        "dead-letter-exchange",
        "dead-letter-routing-key",
        "dead-letter-strategy",
        "delivery-limit",
        "expires",
        "max-in-memory-bytes",
        "max-in-memory-length",
        "max-length",
        "message-ttl",
        "overflow",
    },
    "exchange": set[str](),
}
