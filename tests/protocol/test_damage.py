"""A damaged data directory: the broker says what is lost, recovers the rest, and keeps the damaged files."""

import os
import stat
from pathlib import Path

import pika
import pytest
from pika import BasicProperties

from tests.protocol.broker_process import BrokerProcess

PERSISTENT = BasicProperties(delivery_mode=2)
MESSAGES = 100


@pytest.fixture
def process(process: BrokerProcess) -> BrokerProcess:
    """A broker with 100 messages."""
    publish(process)
    return process


def publish(process: BrokerProcess) -> None:
    """Publish 100 messages."""
    channel = pika.BlockingConnection(pika.URLParameters(process.url)).channel()
    channel.queue_declare("q", durable=True)
    channel.confirm_delivery()
    for number in range(MESSAGES):
        channel.basic_publish("", "q", b"%d " % number * 200, PERSISTENT)


def files(process: BrokerProcess) -> tuple[Path, Path]:
    database = process.directory / "data" / "broker.sqlite3"
    return database, database.with_name(database.name + "-wal")


def flip(path: Path, offset: int) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def depth(process: BrokerProcess) -> int:
    channel = pika.BlockingConnection(pika.URLParameters(process.url)).channel()
    return int(channel.queue_declare("q", passive=True).method.message_count)


def kept(process: BrokerProcess) -> Path:
    (path,) = (process.directory / "data").glob("damaged-*")
    return path


def test_no_damage_is_reported_after_a_kill_or_a_stop(process: BrokerProcess) -> None:
    """A broker that is killed or stopped, and then started again, still has all persistent messages that it had
    confirmed. It logs no damage, and leaves no copies of damaged files in the data directory.
    """
    for end in (process.kill, process.stop):
        end()
        process.start()
        assert depth(process) == MESSAGES
    assert "damaged" not in process.log
    assert not list((process.directory / "data").glob("*damaged*"))
    assert not list((process.directory / "data").glob("*copy"))


@pytest.mark.parametrize("where", [0.5, 0.0], ids=["in the middle", "in its header"])
def test_a_flipped_bit_in_the_write_ahead_log_is_reported(process: BrokerProcess, where: float) -> None:
    """If a bit in the write-ahead log of the broker's SQLite database is flipped, the broker starts with the messages
    that were stored before the damaged entry. If the bit is in the log's header, the broker starts with only the
    messages in the database file. It logs a warning, and keeps a copy of the damaged write-ahead log.
    """
    process.stop()  # this writes the messages to the database file
    process.start()
    publish(process)
    process.kill()
    _, log = files(process)
    size = log.stat().st_size
    flip(log, int(size * where) + 8)
    before = log.read_bytes()
    process.start()
    assert "the log was damaged" in process.log
    assert (kept(process) / log.name).read_bytes() == before
    if where:
        assert MESSAGES < depth(process) < 2 * MESSAGES
    else:
        assert depth(process) == MESSAGES


def test_only_the_last_change_is_lost_if_the_end_of_the_write_ahead_log_is_damaged(process: BrokerProcess) -> None:
    """If the end of the write-ahead log of the broker's SQLite database is damaged, the broker loses only the last
    change that it stored (in this test, one message). It logs a warning, and keeps a copy of the damaged write-ahead
    log.
    """
    process.kill()
    _, log = files(process)
    flip(log, log.stat().st_size - 100)
    process.start()
    assert depth(process) == MESSAGES - 1
    assert "the last group of changes in the log is incomplete" in process.log
    assert (kept(process) / log.name).exists()


def test_the_broker_does_not_start_if_its_database_is_empty_but_its_write_ahead_log_is_not(
    process: BrokerProcess,
) -> None:
    """If the broker's database file is empty, but its write-ahead log is not, the broker does not start. If it
    started, SQLite would delete the log and the messages in it.
    """
    process.kill()
    database, log = files(process)
    before = log.read_bytes()
    database.write_bytes(b"")
    with pytest.raises(AssertionError, match="is empty, but its log is not"):
        process.start()
    assert log.read_bytes() == before


def test_a_broker_with_an_empty_database_and_no_write_ahead_log_starts_like_a_new_one(process: BrokerProcess) -> None:
    """If the broker's database file is empty and has no write-ahead log, the broker starts like a new one, and logs
    that the database was empty. The next start does not log this again.
    """
    process.stop()
    files(process)[0].write_bytes(b"")
    process.start()
    assert "broker.sqlite3 was empty, so the broker starts like a new one" in process.log
    process.stop()
    process.log_file.unlink()
    process.start()
    assert "was empty" not in process.log


def test_messages_in_the_remaining_part_of_a_truncated_database_are_recovered(process: BrokerProcess) -> None:
    """If the broker's database file is truncated to half of its size, the broker recovers the messages in the remaining
    part, logs a warning, and keeps a copy of the truncated file. The next start logs no further warning.
    """
    process.stop()
    database, _ = files(process)
    data = database.read_bytes()
    database.write_bytes(data[: len(data) // 2])
    process.start()
    assert "the database was damaged" in process.log
    assert 0 < depth(process) < MESSAGES
    assert (kept(process) / database.name).stat().st_size == len(data) // 2
    process.kill()
    process.start()
    assert process.log.count("was damaged") == 1


def test_more_than_half_of_the_messages_are_recovered_if_a_page_of_the_database_is_damaged(
    process: BrokerProcess,
) -> None:
    """If one page in the middle of the broker's database file is overwritten, the broker logs a warning, and still
    recovers more than half of the messages.
    """
    process.stop()
    database, _ = files(process)
    data = database.read_bytes()
    middle = len(data) // 2 // 4096 * 4096
    database.write_bytes(data[:middle] + b"\xff" * 4096 + data[middle + 4096 :])
    process.start()
    assert "the database was damaged" in process.log
    assert MESSAGES // 2 < depth(process) < MESSAGES


def test_the_broker_does_not_start_if_its_database_file_is_not_a_database(process: BrokerProcess) -> None:
    """If the broker's database file is not a database, the broker does not start. It reports that nothing in the file
    can be read, and leaves the file unchanged.
    """
    process.stop()
    database, _ = files(process)
    database.write_bytes(b"x" * 8192)
    with pytest.raises(AssertionError, match="nothing in it can be read"):
        process.start()
    assert database.read_bytes() == b"x" * 8192


def test_a_data_directory_is_accessible_only_to_its_owner(tmp_path: Path) -> None:
    """Only the owner can access a new data directory and its files, whatever the umask."""
    mask = os.umask(0)
    try:
        with BrokerProcess(tmp_path) as process:
            data = process.directory / "data"
            assert stat.S_IMODE(data.stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()} == {0o600}
    finally:
        os.umask(mask)
