"""Programs that use Celery can use retries with a countdown, eta on quorum queues, events, remote control, results and
chords.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery, chord, group
from celery.events import EventReceiver

app = Celery("shop", broker=os.environ["AMQP_URL"], backend=os.environ.get("RESULTS", "rpc://"))
app.conf.update(
    task_default_queue="shop",
    # On quorum queues, delayed tasks wait in celery's own cascade of queues.
    task_default_queue_type="quorum",
    worker_detect_quorum_queues=True,
    broker_native_delayed_delivery_queue_type="classic",
    task_acks_late=True,
    worker_send_task_events=True,
)


@app.task(name="add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="flaky", bind=True, max_retries=2)
def flaky(self) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=1)
    return self.request.retries


class Watcher(EventReceiver):
    """Records the types of events on its own thread, until three tasks have succeeded."""

    def __init__(self) -> None:
        super().__init__(app.connection(), handlers={"*": self.note}, app=app)
        self.seen: list[str] = []
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.capture, kwargs={"wakeup": False}, daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    def on_consume_ready(self, *args: object, **keywords: object) -> None:
        self.ready.set()

    def note(self, event: dict) -> None:
        self.seen.append(event["type"])
        self.should_stop = self.seen.count("task-succeeded") >= 3


@contextmanager
def worker() -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", "with_celery", "-q", "worker", "--pool", "threads", "-c", "4"]
    running = subprocess.Popen(command, cwd=Path(__file__).parent)
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def play() -> None:
    watcher = Watcher()
    started = datetime.now(UTC)
    late = add.apply_async((20, 22), eta=started + timedelta(seconds=3))
    retried = flaky.delay()
    numbers = group(add.s(n, n) for n in range(10))()
    assert numbers.get(timeout=60) == [2 * n for n in range(10)]
    assert app.control.ping(timeout=60, limit=1)
    assert late.get(timeout=60) == 42
    assert datetime.now(UTC) - started >= timedelta(seconds=3)
    assert retried.get(timeout=60) == 2
    watcher.thread.join(60)
    assert {"task-received", "task-started", "task-succeeded"} <= set(watcher.seen), watcher.seen


if __name__ == "__main__" and "RESULTS" not in os.environ:
    with worker():
        play()
    # rpc:// does not support chords. With a file backend, celery polls with messages until it has all results.
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, __file__], env=os.environ | {"RESULTS": f"file://{directory}"}, check=True)
elif __name__ == "__main__":
    with worker():
        assert chord((add.s(n, n) for n in range(5)), total.s())().get(timeout=60) == 20
