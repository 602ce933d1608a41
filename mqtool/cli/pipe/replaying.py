"""Reads recordings for `mqtool recording replay`: files one after the other, each message when it is due."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.pipe.source import LOOK_UP, STDIN, Input, chunks, delimited, opened, whole
from mqtool.errors import MqtoolError, UsageError
from mqtool.message import Message
from mqtool.recordings.recording import Changes, Pace, Recorded, Selection, recorded

#: If the next message is due later than this many seconds, confirms are processed meanwhile, which may take 0.05 s.
_LONG = 0.1
#: Bytes at the start and at the end of a file in which its first and last message are looked for.
_NEAR = 256 * 1024


class Recording:
    """The messages of recordings, one file after the other; without files, those of stdin."""

    def __init__(self, paths: Sequence[Path], selection: Selection, changes: Changes, times: int = 1) -> None:
        if not paths and output.is_terminal(STDIN):
            raise UsageError("there is no recording to replay", "name a file, or pipe one in")
        self._selection = selection
        self._changes = changes
        self._times = times
        self._passes = 0
        self._descriptors = [opened(path) for path in paths] or [STDIN]
        self._names = [str(path) for path in paths]
        self._sizes = [os.fstat(each).st_size if output.is_file(each) else None for each in self._descriptors]
        if times > 1 and None in self._sizes:
            raise UsageError("--loop needs files, as a pipe can be read only once", "save the recording first")

    def messages(self, *, to_the_end: bool = False) -> Iterator[Recorded | None]:
        """Yield the messages; None while a pipe is empty. With `to_the_end`, a stop does not cut a file short."""
        for _ in range(self._times):
            for descriptor, size in zip(self._descriptors, self._sizes, strict=True):
                if size is not None and self._times > 1:
                    os.lseek(descriptor, 0, os.SEEK_SET)
            for index, (descriptor, size) in enumerate(zip(self._descriptors, self._sizes, strict=True)):
                lines = delimited((whole if to_the_end and size is not None else chunks)(descriptor), b"\n")
                name = self._names[index] if len(self._names) > 1 else None
                yield from recorded(lines, self._selection, self._changes, name)
            self._passes += 1

    def fraction(self, pace: Pace) -> Callable[[], float] | None:
        """Return a function that returns the fraction played so far, from 0 to 1; None if the size is unknown."""
        sizes = [size for size in self._sizes if size is not None]
        total = sum(sizes) * self._times
        if len(sizes) < len(self._sizes) or not total:
            return None
        started, seconds = time.monotonic(), self._seconds(pace)

        def fraction() -> float:
            if seconds:
                return min(1.0, (time.monotonic() - started) / seconds)
            position = sum(os.lseek(each, 0, os.SEEK_CUR) for each in self._descriptors)
            return min(1.0, (position + self._passes * sum(sizes)) / total)

        return fraction

    def _seconds(self, pace: Pace) -> float:
        """Estimate how many seconds it takes to replay the files; 0 if unknown, or if `pace` has a fixed rate."""
        if pace.rate is not None:
            return 0.0
        played, due = Pace(pace.speed, clock=lambda: 0.0), 0.0
        for descriptor, size in zip(self._descriptors, self._sizes, strict=True):
            ends = (os.pread(descriptor, _NEAR, 0), os.pread(descriptor, _NEAR, max(0, (size or 0) - _NEAR)))
            try:
                first, last = (_moment(end.strip().split(b"\n")[at]) for end, at in zip(ends, (0, -1), strict=True))
            except MqtoolError:
                return 0.0  # messages() raises the error again, with the line number
            lowest, highest = self._selection.between(first, last)
            for moment, opens in ((lowest, True), (highest, False)):
                due = played.due(Recorded(b"", moment=moment, opens=opens))
        return due * self._times


def _moment(line: bytes) -> float | None:
    message = next(recorded([line], Selection(), Changes("")), None)
    return message.moment if message else None


class Replayed(Input):
    """Yields the messages of a recording when they are due."""

    def __init__(self, recording: Recording, pace: Pace, *, keeps_rest: bool) -> None:
        super().__init__(
            recording.messages(to_the_end=keeps_rest), keeps_rest=keeps_rest, fraction=recording.fraction(pace)
        )
        self._pace = pace

    def __iter__(self) -> Iterator[Message | None]:
        for message in super().__iter__():
            if isinstance(message, Recorded):
                due = self._pace.due(message)
                while stopping.requested() is None and (left := due - time.monotonic()) > 0:
                    if left > _LONG:
                        yield None
                        left = due - time.monotonic()
                    time.sleep(max(0.0, min(left, LOOK_UP)))
                if stopping.requested() is not None:
                    self.give_back(message)
                    return
            yield message
