"""What was not confirmed, and what was not published at all: kept, so that a second run finishes the job."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mqtool.amqp import Channel
from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.errors import UsageError
from mqtool.message import Message


class Input:
    """Messages that are read until we are asked to stop; what is left then can be had too.

    From a file that is all the rest; from a pipe, whose writer may go on for ever, what is in it.
    """

    def __init__(self, read: Iterator[Message | None]) -> None:
        self._read = read
        self._given_back: list[Message] = []

    def __iter__(self) -> Iterator[Message | None]:
        return self

    def __next__(self) -> Message | None:
        if stopping.requested() is not None:
            raise StopIteration
        return next(self._read)

    def give_back(self, message: Message) -> None:
        """One that was taken, and could not be published."""
        self._given_back.append(message)

    def rest(self) -> Iterator[Message]:
        """What was not taken."""
        yield from self._given_back
        for message in self._read:
            if message is None:
                return
            yield message


class FailedMessages:
    """The file of --failed-to. It takes its name only when it is complete: what is sent may come from one of that name.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        from mqtool import ndjson

        self._encode = ndjson.from_message
        self._path = path
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._count = 0
        try:
            self._file = self._unfinished.open("wb")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def add(self, message: Message) -> None:
        """One that was refused."""
        self._file.write(self._encode(message))
        self._count += 1

    def finish(self, unconfirmed: Iterable[Message], messages: Iterator[Message | None], channel: Channel) -> None:
        """Those that were not answered for, and those that were not published at all."""
        for message in unconfirmed:
            self.add(channel.addressed(message))
        if isinstance(messages, Input):
            for message in messages.rest():
                self.add(channel.addressed(message))
        self._file.close()
        self._unfinished.replace(self._path)
        if self._count:
            output.notice(f"{self._count:,} not confirmed, kept in {self._path}; 'mqtool send --json -f' sends them")
