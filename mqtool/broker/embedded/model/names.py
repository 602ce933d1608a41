"""Names of queues and exchanges, and routing keys: AMQP 0-9-1 sends each as a short string of up to 255 bytes."""

MAX_NAME = 255

#: Names that begin with this are the broker's own: clients cannot declare a queue or an exchange with such a name.
RESERVED = "amq."


def is_too_long(name: str) -> bool:
    """Return True if a name or a routing key has more bytes than a short string can have."""
    return len(name.encode(errors="surrogateescape")) > MAX_NAME


def name_error(kind: str, name: str) -> str | None:
    """Describe what is wrong with a name; return None if nothing is.

    Args:
        kind: what has the name, such as `queue name`.
    """
    if is_too_long(name):
        return f"{kind} is longer than {MAX_NAME} bytes"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{kind} is not UTF-8"
    return None
