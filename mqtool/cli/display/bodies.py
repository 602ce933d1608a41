"""Bodies as people read them: binary ones in one short line, and compressed ones decompressed."""

import zlib
from collections.abc import Mapping
from typing import Any

from mqtool.cli.display import output
from mqtool.errors import BadData
from mqtool.message import Delivery

#: The largest body that is decompressed, in bytes: a few bytes can expand a thousandfold.
LARGEST = 64 << 20
#: Bytes of a binary body to show.
_START = 48
#: Characters of headers to show.
_HEADERS = 1_000
#: What publishers call gzip and zlib: as content_encoding, or in kombu's header `compression`, where both mean zlib.
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "zlib", "application/x-gzip", "application/gzip"})
#: zlib's argument for data in the format of zlib or of gzip, and for data in neither.
_EITHER, _BARE = 47, -15


def compression(properties: Mapping[str, Any]) -> str | None:
    """Return the name of a body's compression, as the publisher wrote it, if it is gzip or zlib."""
    for name in (properties.get("content_encoding"), (properties.get("headers") or {}).get("compression")):
        if isinstance(name, str) and name.lower() in _COMPRESSED:
            return name
    return None


def decompressed(delivery: Delivery) -> bytes:
    """Return a body without its compression; unchanged if its properties do not say that it is compressed.

    Raises:
        BadData: the body is not what they say, or would have more than LARGEST bytes.
    """
    name = compression(delivery.properties)
    if name is None or not delivery.body:
        return delivery.body
    parts, rest, left = list[bytes](), delivery.body, LARGEST
    try:
        while rest:  # gzip files may be concatenated
            decoder = zlib.decompressobj(_EITHER if rest[:1] == b"\x1f" or _is_zlib(rest) else _BARE)
            parts.append(decoder.decompress(rest, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise BadData(f"a body would have more than {LARGEST >> 20} MiB without its compression ({name})")
            if not decoder.eof:
                raise zlib.error("incomplete")
            rest = decoder.unused_data
    except zlib.error as error:
        raise BadData(f"a body is not {name}, although its properties say so") from error
    return b"".join(parts)


def _is_zlib(data: bytes) -> bool:
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0


def is_binary(body: bytes) -> bool:
    """Return True if a terminal cannot show the start of a body as text."""
    start = body[:_START]
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start < len(start) - 3 or len(start) == len(body)  # else the last character may have been cut
    return b"\0" in start


def excerpt(delivery: Delivery, *, is_decompressed: bool = False) -> tuple[bytes, str]:
    """Shorten a body for a terminal, as output.excerpt() does. Of a binary one, show less, but also its type."""
    body = delivery.body
    if not is_binary(body):
        return output.excerpt(body)
    names = delivery.properties.get("content_type"), None if is_decompressed else compression(delivery.properties)
    facts = ", ".join((f"{len(body):,} bytes", *(output.one_line(name) for name in names if name)))
    return body[:_START], f"{'…' * (len(body) > _START)} ({facts})"


def headers_instead(delivery: Delivery) -> str:
    """Return the headers of a message without a body, as JSON for a terminal; "" if there are none.

    Events of RabbitMQ's event exchange, for example, are only headers.
    """
    if delivery.body or not delivery.headers:
        return ""
    from mqtool.ndjson import as_json

    start, rest = output.excerpt(as_json(delivery.headers).encode(), _HEADERS)
    return output.visible_json(start.decode("utf-8", "ignore")) + rest
