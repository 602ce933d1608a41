"""mqtool scrub."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.groups import Commands
from mqtool.cli.pipe.reading import STDIN, delimited, opened, whole
from mqtool.errors import UsageError
from mqtool.recordings.pseudonyms import Pseudonyms
from mqtool.recordings.scrubbing import Scrubber, parse_fields

app = Commands()


@app.command(
    "mqtool tap orders --json | mqtool scrub > incident.ndjson",
    "mqtool scrub incident.ndjson --keep routing_key,headers.type",
    "mqtool scrub incident.ndjson --field body.customer.email --seed 'a long secret'",
)
def scrub(
    file: Annotated[Path | None, Argument(help="Recording (default: stdin)")] = None,
    keep: Annotated[
        list[str] | None, Option(metavar="FIELDS", help="Keep these, such as routing_key,headers.type")
    ] = None,
    field: Annotated[
        list[str] | None, Option(metavar="FIELDS", help="Replace only these, such as body.user.email")
    ] = None,
    seed: Annotated[
        str | None, Option(help="Same seed, same replacements; keep it secret", show_default="random")
    ] = None,
) -> None:
    """Make a recording fit to share: other values, same shape.

    Letters become letters and digits digits; the same word becomes the same word throughout. Keys of headers and of
    JSON bodies, true, false and null stay; so do exchange, queue, times, content type and what RabbitMQ sets itself,
    such as x-death. All else is replaced: routing keys, headers, ids, bodies.
    """
    if file is None and output.is_terminal(STDIN):
        raise UsageError("there is no recording to scrub", "name a file, or pipe one in")
    pseudonyms = Pseudonyms(os.urandom(32) if seed is None else os.fsencode(seed))
    scrubber = Scrubber(pseudonyms, parse_fields(keep or ()), parse_fields(field or ()))
    descriptor = opened(file)
    # Ctrl-C also ends what writes into our pipe; the lines that it has written are still to come out.
    with stopping.calling(lambda: None):
        number, done = 0, list[bytes]()
        try:
            for line in delimited(_with_pauses(descriptor), b"\n"):
                if line is None:
                    output.write(b"".join(done))
                    done.clear()
                    continue
                number += 1
                if line.strip():
                    done.append(scrubber.line(line, f"line {number}") + b"\n")
        finally:
            output.write(b"".join(done))


def _with_pauses(descriptor: int) -> Iterator[bytes | None]:
    """What is read, and None each time before there is more, when it is time to write."""
    for chunk in whole(descriptor):
        yield chunk
        yield None
