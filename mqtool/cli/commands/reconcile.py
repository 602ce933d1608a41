"""mqtool reconcile."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from mqtool import ndjson
from mqtool.cli.display import output
from mqtool.cli.groups import Commands
from mqtool.cli.pipe.reading import opened
from mqtool.errors import BadData, SomeFailed
from mqtool.work.reconciliation import Reconciliation
from mqtool.work.reconciliation import reconcile as compare

app = Commands()

_SHOWN = 10


@app.command("mqtool reconcile sent.ndjson got.ndjson", "mqtool receive --json | mqtool reconcile sent.ndjson -")
def reconcile(
    sent: Annotated[Path, Argument(help="What was sent, as NDJSON; - is stdin")],
    got: Annotated[Path, Argument(help="What was received, as NDJSON; - is stdin")],
    exact: Annotated[bool, Option(help="Fail on duplicate, unexpected and reordered messages too")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the comparison as JSON")] = False,
) -> None:
    """Compare two files of messages by message_id.

    Tells what is missing, duplicated or out of order. Exits 3 if any message is missing.
    """
    nameless = 0

    def with_ids() -> Iterator[str]:  # what was received may come from anybody
        nonlocal nameless
        for message_id in _ids(got):
            nameless += message_id is None
            if message_id is not None:
                yield message_id

    result = compare(_all_ids(sent), with_ids())
    if nameless:
        output.warning(f"{nameless:,} of the messages received have no message_id, and are not compared")
    if as_json:
        output.show(json.dumps(asdict(result)))
    else:
        _show(result)
    if result.missing:
        raise SomeFailed(f"{len(result.missing):,} of {result.sent:,} messages are missing")
    if exact and (result.doubled or result.unexpected or result.reordered):
        raise SomeFailed("the messages all arrived, but not as they were sent")


def _all_ids(path: Path) -> Iterator[str]:
    for number, message_id in enumerate(_ids(path), 1):
        if message_id is None:
            raise BadData(f"{path}: message {number} has no message_id", "messages are compared by their message_id")
        yield message_id


def _ids(path: Path) -> Iterator[str | None]:
    with open(opened(path), "rb", closefd=str(path) != "-") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield ndjson.to_message(line, f"{path}, line {number},").message_id


def _show(result: Reconciliation) -> None:
    output.show(f"sent        {result.sent:,}\ngot         {result.got:,}")
    for what in ("missing", "doubled", "unexpected", "reordered"):
        ids: list[str] = getattr(result, what)
        more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
        listed = f": {', '.join(map(output.one_line, ids[:_SHOWN]))}{more}" if ids else ""
        output.show(f"{what:<12}{len(ids):,}{listed}")
