"""Errors about frames, in RabbitMQ's words, which are Erlang's."""

from mqtool.broker.embedded.model.errors import FRAME_ERROR, ConnectionException


def frame_error(what: str) -> ConnectionException:
    """501: not a valid frame, or not a valid method in it."""
    return ConnectionException(FRAME_ERROR, what)


def malformed(code: int, kind: int, payload: bytes, what: str = "") -> ConnectionException:
    """A frame of this type that is not valid here."""
    shown = "all octets" if len(payload) <= 16 else "first 16 octets"
    text = f"type {kind}, {shown} = {_erlang(payload[:16])}"
    return ConnectionException(code, f"{text}: {what}" if what else text)


def _erlang(octets: bytes) -> str:
    """Octets as Erlang prints a binary: as text if all of it is printable."""
    text = octets.decode("latin-1")
    if octets and all(letter.isprintable() for letter in text) and '"' not in text:
        return f'<<"{text}">>'
    return f"<<{','.join(map(str, octets))}>>"
