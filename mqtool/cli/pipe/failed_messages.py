"""The messages that were not confirmed, or not even published: kept, so that a second run finishes the job."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mqtool.cli.display import output
from mqtool.errors import UsageError
from mqtool.message import Message


class FailedMessages:
    """The file of --failed-to. It gets its name only when complete, since the input may be a file of the same name.

    Args:
        addressed: a message with the exchange and the routing key that it was published with.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path, addressed: Callable[[Message], Message]) -> None:
        from mqtool import ndjson

        self._encode = ndjson.from_message
        self._addressed = addressed
        self._path = path
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._count = 0
        try:
            self._file = self._unfinished.open("wb")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def add(self, messages: Iterable[Message]) -> None:
        """Write messages, with the exchange and routing key that they were published with."""
        for message in messages:
            self._file.write(self._encode(self._addressed(message)))
            self._count += 1

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._unfinished.replace(self._path)
        if self._count:
            output.warning(
                f"{self._count:,} not confirmed, kept in {self._path}; send them with 'mqtool send --json -f'"
            )
