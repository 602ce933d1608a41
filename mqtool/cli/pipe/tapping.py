"""The implementation of `mqtool tap`: prints copies of messages from one or more brokers, and counts dropped copies.

To tap all messages, a command needs the virtual host's firehose (tracing). The first such command switches it on,
and the last one switches it off. A file in the state directory records that mqtool switched the firehose on. Each
command that needs it holds a lock on that file; a file that nobody locks was left behind by a killed command.
"""

import fcntl
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mqtool import where as conditions
from mqtool.amqp import Channel, Receiving
from mqtool.amqp.reopening_channel import ChannelListener
from mqtool.amqp.subscription import Buffer
from mqtool.broker import state
from mqtool.cli import confirmation, stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import DeliveryWriter, redirect, say_appended
from mqtool.cli.options.receiving_options import ReceivingOptions
from mqtool.cli.pipe.receiving import delivery_writer
from mqtool.errors import MqtoolError, TimedOut
from mqtool.message import Delivery
from mqtool.taps import Tap, firehose_is_on, switch_firehose
from mqtool.tutorials.dialects import DialectLines
from mqtool.where import Where

#: Seconds between checks of the broker's queue; number of checks between notices of dropped messages.
_LOOK, _EVERY = 0.25, 8
#: If there was no check for this many seconds, the process must have been suspended (Ctrl-Z), and the broker may have
#: dropped messages during that time.
_STANDSTILL = 2.0


@dataclass(frozen=True)
class TapSource:
    """A broker to tap, and a function that starts a tap with the given settings."""

    access: Access
    start: Callable[[Channel, Receiving], Tap]


@dataclass(frozen=True)
class TapPrinting:
    """Settings of print_taps().

    Attributes:
        line: the default format of a copy; see DeliveryWriter.
        buffer: how many deliveries to keep per broker for a slow reader; beyond that, the oldest are dropped.
        where: the condition that copies must match to be printed, if any.
    """

    receiving: ReceivingOptions
    line: Callable[[Delivery], str] | str
    buffer: int
    where: Where | None = None


def print_taps(sources: Sequence[TapSource], printing: TapPrinting) -> None:
    """Print copies from all brokers at once, until a limit is reached or a signal asks to stop.

    Raises:
        TimedOut: there was no message for the time given by --idle-timeout, before --count was reached.
        ReaderGone: the program that reads stdout has ended.
    """
    redirect(printing.receiving.printing.into)
    writers = [_labelled(printing, source, among=sources) for source in sources]
    with ExitStack() as stack:
        channels = [stack.enter_context(source.access.channel()) for source in sources]

        def stop() -> None:
            for channel in channels:
                channel.stop()

        buffers = [Buffer(printing.buffer) for _ in sources]
        taps = []
        for source, channel, write, buffer in zip(sources, channels, writers, buffers, strict=True):
            settings = printing.receiving.settings()._replace(
                count=None, buffer=buffer, before_acknowledging=write.flush
            )
            taps.append(source.start(channel, settings))
        wanted = _Wanted(printing.receiving.limit, printing.where, stop)
        runs = [_Run(write, wanted.of(tap.deliveries), stop) for write, tap in zip(writers, taps, strict=True)]
        reader = output.PipeReader(on_gone=stop)
        with _counting(buffers, taps):
            output.status(DialectLines.waiting)
            output.create_ready_file(printing.receiving.ready_file)
            stopping.restart_time_limit()
            for run in runs[1:]:
                run.start()
            runs[0].run()
            for run in runs[1:]:
                run.join()
        if not any(write.batched.has_failed for write in writers):
            say_appended(sum(run.count for run in runs), printing.receiving.printing.into)
        reader.check()
        for run in runs:
            if run.failure is not None:
                raise run.failure
        if wanted.missing and not any(channel.stopping for channel in channels):
            idle = printing.receiving.idle_timeout or 0
            raise TimedOut(f"no message for {idle:g} s: {wanted.found:,} of {printing.receiving.limit:,} received")


class _Wanted:
    """Chooses the deliveries to print: those that match, up to a total count across all brokers."""

    def __init__(self, count: int | None, where: Where | None, stop: Callable[[], None]) -> None:
        self.found = 0
        self._count = count
        self._where = where
        self._stop = stop
        self._lock = threading.Lock()

    @property
    def missing(self) -> bool:
        """True if more deliveries are needed to reach the count."""
        return self._count is not None and self.found < self._count

    def of(self, deliveries: Iterator[Delivery]) -> Iterator[Delivery]:
        where = self._where
        for delivery in deliveries:
            if where is not None and not where.matches(conditions.of_delivery(delivery)):
                continue
            if self._count is not None and not self._takes():
                return
            yield delivery

    def _takes(self) -> bool:
        with self._lock:
            if self.found == self._count:
                return False
            self.found += 1
            if self.found == self._count:
                self._stop()
            return True


class _Run(threading.Thread):
    """A thread that prints the copies from one broker.

    Attributes:
        count: the number of copies printed so far.
        failure: the error that stopped it, if any.
    """

    def __init__(self, write: DeliveryWriter, deliveries: Iterator[Delivery], stop: Callable[[], None]) -> None:
        super().__init__(name="mqtool-tap", daemon=True)
        self.count = 0
        self.failure: BaseException | None = None
        self._write = write
        self._deliveries = deliveries
        self._stop_all = stop

    def run(self) -> None:
        """Print this tap's copies until there are no more. An error also stops the other taps."""
        try:
            for delivery in self._deliveries:
                self._write.add(delivery)
                self.count += 1
            self._write.flush()
        except BaseException as error:  # raised again by print_taps()
            self.failure = error
            self._stop_all()


def _labelled(printing: TapPrinting, source: TapSource, *, among: Sequence[TapSource]) -> DeliveryWriter:
    """Return a writer for copies from one broker.

    If there are several, each line starts with the broker's address (a field "broker" with --json), except with --raw
    or --format.
    """
    receiving = printing.receiving
    write = delivery_writer(receiving, printing.line, queue_is_private=True)
    if len(among) > 1 and (receiving.printing.as_json or not receiving.printing.has_form):
        name, render = str(source.access.address), write.render
        if receiving.printing.as_json:
            start = f'{{"broker":{json.dumps(name)},'.encode()
            write.render = lambda delivery: start + render(delivery)[1:]
        else:
            prefix = f"{name} ".encode()
            write.render = lambda delivery: prefix + render(delivery)
    return write


@contextmanager
def _counting(buffers: Sequence[Buffer], taps: Sequence[Tap]) -> Iterator[None]:
    """Context manager: print occasional notices about dropped messages, and their total when the `with` block ends."""
    is_over, started = threading.Event(), time.monotonic()

    def dropped() -> int:
        return sum(buffer.dropped for buffer in buffers)

    def watch() -> None:
        said, looks, has_backlog, looked = 0, 0, False, started
        while not is_over.wait(_LOOK):
            looks += 1
            stood_still, looked = time.monotonic() - looked > _STANDSTILL, time.monotonic()
            if not has_backlog and (stood_still or any(tap.has_backlog() for tap in taps)):
                has_backlog = True
                output.warning("this tap was too slow: the broker may have dropped copies, which mqtool cannot count")
            if looks % _EVERY == 0 and (now := dropped()) > said:
                said = now
                output.notice(f"{now:,} dropped so far: the output cannot keep up with the messages")

    # Not joined: it may be waiting for a broker that is down.
    threading.Thread(target=watch, name="mqtool-dropped", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        if count := dropped():
            output.warning(f"{count:,} messages were dropped: the output could not keep up with them; see --buffer")


_HOW = "to switch it off: mqtool tap --firehose-off"
#: The management API starts slightly later than the broker: seconds between attempts to reach it, and their number.
_PAUSE, _ATTEMPTS = 0.5, 60


def switch_off(access: Access) -> None:
    """Switch the firehose off, even if mqtool did not switch it on."""
    switch_firehose(access.management(), access.vhost, on=False)
    with _one_at_a_time():
        _state_file(access).unlink(missing_ok=True)
    output.status(f"the firehose of {access.address} is off")


def check_left_on(access: Access) -> None:
    """Warn if a killed tap left the firehose on; on a terminal, offer to switch it off."""
    file = _state_file(access)
    if not file.exists():
        return
    with _one_at_a_time():
        if not file.exists():
            return
        with _open_state(file) as left:
            if not _is_alone(left):
                return
    output.warning(f"a tap was killed, and left the firehose of {access.address} on")
    if not output.is_terminal(0) or not output.is_terminal(2):
        output.notice(_HOW)
    elif confirmation.agrees("switch it off?"):
        switch_off(access)


@contextmanager
def switched_on(access: Access, channel: Channel) -> Iterator[None]:
    """Context manager: keep the firehose on, also after a broker restart.

    At the end, switch the firehose off, unless it was on before or another tap still needs it.
    """
    api, file = access.management(), _state_file(access)
    with _one_at_a_time():
        if not file.exists() and firehose_is_on(api, access.vhost):
            output.notice("the firehose was on before, and stays on")
            held = None
        else:
            held = _open_state(file)
            fcntl.flock(held, fcntl.LOCK_SH)
    _warn_of_amqp10(channel.connection.broker_to_show)
    if held is None:
        yield
        return
    try:
        switch_firehose(api, access.vhost, on=True)
        channel.reopening.listen(_Again(access))
        yield
    finally:
        _let_go(access, held)


def _warn_of_amqp10(broker: str) -> None:
    """On a terminal, warn that RabbitMQ 4's firehose ends sessions of AMQP 1.0 publishers."""
    if output.is_terminal(2) and re.match(r"RabbitMQ (?!3\.)", broker):
        output.warning(
            "while the firehose is on, AMQP 1.0 publishers fail if their messages have properties that AMQP 0-9-1 "
            "cannot carry"
        )


def _let_go(access: Access, held: IO[str]) -> None:
    with _one_at_a_time(), held:
        if not _is_alone(held):
            return  # another tap still needs the firehose, and will switch it off
        try:
            switch_firehose(access.management(), access.vhost, on=False)
        except MqtoolError as error:
            output.warning(f"cannot switch off the firehose of {access.address}: {error}")
            output.notice(_HOW)
        else:
            _state_file(access).unlink(missing_ok=True)


class _Again(ChannelListener):
    def __init__(self, access: Access) -> None:
        self._access = access

    def opened(self, *, connection_is_new: bool) -> None:
        if connection_is_new:
            threading.Thread(target=self._switch_on, name="mqtool-firehose", daemon=True).start()

    def _switch_on(self) -> None:
        failure: MqtoolError | None = None
        for _ in range(_ATTEMPTS):
            try:
                switch_firehose(self._access.management(), self._access.vhost, on=True)
                return
            except MqtoolError as error:
                failure = error
            threading.Event().wait(_PAUSE)
        output.warning(f"the firehose of {self._access.address} may be off since the connection was lost: {failure}")


def _is_alone(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _state_file(access: Access) -> Path:
    address = access.address
    host = "localhost" if address.host in ("127.0.0.1", "::1") else address.host
    name = hashlib.sha256(f"{host}:{address.port}/{address.virtual_host}".encode()).hexdigest()[:16]
    return state.home() / "firehose" / name


def _open_state(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise MqtoolError(
            f"cannot write to {path}: {error.strerror}", "mqtool records there that it has switched the firehose on"
        ) from error


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with _open_state(state.home() / "firehose" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
