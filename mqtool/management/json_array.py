"""A JSON array, object by object, without having all of it in memory."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any


def objects(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, each as soon as it is there.

    Raises:
        ValueError: it is none, or it is cut short.
    """
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, start, begun = "", 0, False
    for chunk in chunks:
        text, start = text[start:] + utf8.decode(chunk), 0
        if not begun and text.lstrip():
            if not text.lstrip().startswith("["):
                raise ValueError("not a list")
            begun, start = True, text.index("[") + 1
        while True:
            while start < len(text) and text[start] in ", \t\r\n":
                start += 1
            if text.startswith("]", start):
                return
            try:
                item, start = decoder.raw_decode(text, start)
            except ValueError:  # the rest of it is in the next chunk
                break
            yield item
    raise ValueError("cut short")
