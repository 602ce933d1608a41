"""Fixtures: the brokers under test, and a shell to run mqtool in."""

import faulthandler
import fcntl
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import state
from mqtool.broker.choice import STARTERS, BrokerKind, starter_of
from mqtool.broker.node import PrivateNodes
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Wanted
from tests.brokers import ALL_CASES, IN_CI, LIKE, TestBroker, free_port, from_environment, skip_or_fail
from tests.cli import preloaded
from tests.cli.browser import chromedriver, chromium
from tests.cli.shell import Shell

__all__ = ["chromedriver", "chromium"]

#: The server of preloaded commands. It ends when pytest closes its standard input.
_SERVER = pytest.StashKey[subprocess.Popen[bytes]]()
#: The thread that starts RabbitMQ for the whole suite.
_STARTING = pytest.StashKey[threading.Thread]()
#: A copy of the worker's own stderr, for the traceback of a test that hangs.
_STDERR = pytest.StashKey[int]()
#: A worker is ended if a teardown takes longer than this, or a test exceeds its timeout by more than this. Stopping a
#: RabbitMQ node takes up to 60 s.
_MORE_SECONDS = 180
#: Starts RabbitMQ with its default rates mode. `mqtool broker up` sets it to detailed.
_AS_INSTALLED = PrivateNodes("RabbitMQ", ("management.rates_mode = basic",))
#: In CI, these tests start RabbitMQ nodes. They come first, so that one worker runs most of them, one after another.
_WITH_NODES = {
    "test_drill_kill_node_loses_nothing",
    "test_delayed_relay_continues_after_the_broker_was_killed",
    "test_drill_restart_broker_loses_nothing",
    "test_broker_up_starts_a_broker_and_broker_down_stops_it",
    "test_an_enabled_plugin_is_listed_immediately_and_after_a_restart",
    "test_list_shovels_and_doctor_show_shovels_that_do_not_work",
    "test_a_cluster_of_private_nodes_keeps_messages_if_one_node_is_killed",
    "test_broker_commands_work_with_a_broker_in_docker",
    "test_a_conversion_can_be_resumed_after_the_broker_was_killed",
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on-both-brokers", action="store_true", help="run every test on RabbitMQ as well")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # not captured by pytest
    # No deadline, because a slow example on a busy machine is not a failure. CI can wait for more examples.
    hypothesis.settings.register_profile("no times", deadline=None, max_examples=100 if IN_CI else 10)
    hypothesis.settings.load_profile("no times")
    config.addinivalue_line(
        "markers",
        "differs_since(version, why): RabbitMQ behaves differently from this version on, so the test must fail there",
    )
    config.addinivalue_line(
        "markers", "until(version, why): what the test is about does not exist from this version on, so it is skipped"
    )
    config.addinivalue_line(
        "markers",
        "once_on_rabbitmq(*names): on RabbitMQ, run only one case for each combination of these parameters' values",
    )
    config.addinivalue_line(
        "markers",
        "sampled(count): the test's cases are similar; without ALL_CASES, the whole suite runs this many of them",
    )
    config.addinivalue_line(
        "markers", "own_vhost(why): the test gets a virtual host that no other test uses before or after it"
    )
    # Commands inherit ignored signals (SIGINT in a background job, SIGHUP under nohup), but not handlers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["MQTOOL_SUITE_STATE"] = tempfile.mkdtemp(prefix="mqtool-suite-")
        if preloaded.IS_POSSIBLE:
            config.stash[_SERVER] = preloaded.start_server()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that brokers are stopped
    # Keep the suite's brokers and settings apart from the user's.
    os.environ["XDG_STATE_HOME"] = os.environ["MQTOOL_SUITE_STATE"]
    os.environ["XDG_CONFIG_HOME"] = os.environ["MQTOOL_SUITE_STATE"]
    for name in ("MQTOOL_URL", "AMQP_URL", "MQTOOL_STREAM_PORT", "MQTOOL_CONTEXT", "MQTOOL_DIALECT"):
        os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)  # after -k, which may have deselected the embedded broker's cases
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect cases that need not run on RabbitMQ and most cases of sampled tests; order the rest for the workers."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    tried = set()
    on_embedded = {test for test, _, case in (item.nodeid.partition("[") for item in items) if "embedded" in case}
    for item in items:
        test, _, case = item.nodeid.partition("[")
        mark = item.get_closest_marker("once_on_rabbitmq")
        is_ours = item.path.parent.name == "integration"
        if not (config.getoption("on_both_brokers") or "rabbitmq" not in case or is_ours) and test in on_embedded:
            left_out.append(item)
        elif mark and (params := item.callspec.params)["broker"] == "rabbitmq":  # type: ignore[attr-defined]
            this = test, *(params[name] for name in mark.args)
            (left_out if this in tried else kept).append(item)
            tried.add(this)
        else:
            kept.append(item)
    if not ALL_CASES and not all(".py" in named for named in config.args):
        some = _sampled(kept)
        left_out += [item for item in kept if item not in some]
        kept = [item for item in kept if item in some]
    items[:] = _in_parts(kept, getattr(config, "workerinput", {"workercount": 1})["workercount"])
    config.hook.pytest_deselected(items=left_out)


def _in_parts(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in such an order that each worker's part has files of every directory.

    pytest-xdist gives each worker a consecutive part. A worker that has finished takes tests from the end of another
    part, which are the quick tests of tests/unit.
    """
    with_nodes = [item for item in items if item.name.partition("[")[0] in _WITH_NODES]
    others = (item for item in items if item not in with_nodes)
    files = [[*tests] for _, tests in itertools.groupby(others, key=lambda item: item.path)]
    parts = [files[first::workers] for first in range(workers)]
    return [*with_nodes, *(item for part in parts for tests in part for item in tests)]


def _sampled(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the tests to run. Of a test marked `sampled`, these are the first case and a random choice of the others.

    The choice is the same in each run, but another one for each broker.
    """
    cases: dict[tuple[str, bool], list[pytest.Item]] = {}
    for item in items:
        test, _, case = item.nodeid.partition("[")
        cases.setdefault((test, "rabbitmq" in case), []).append(item)
    chosen = set()
    for (test, _), alike in cases.items():
        if (mark := alike[0].get_closest_marker("sampled")) and mark.args[0] < len(alike):
            # At random, because evenly spaced cases could all have the same value of one parameter.
            alike = [alike[0], *random.Random(test).sample(alike[1:], max(mark.args[0] - 1, 0))][: mark.args[0]]
        chosen |= set(alike)
    return chosen


@contextmanager
def _ending_after(item: pytest.Item, seconds: float) -> Iterator[None]:
    """If the block takes longer than this, end this worker, and print what its threads are doing.

    pytest-timeout's alarm goes off only once, so it cannot end a teardown that hangs after the test has timed out. If
    it goes off in a __del__(), Python ignores its exception, and the test goes on.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_STDERR])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    mark = item.get_closest_marker("timeout")
    given = mark.args[0] if mark else item.config.getoption("timeout") or item.config.getini("timeout")
    with _ending_after(item, float(given) + _MORE_SECONDS):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Check that the test has left SIGPIPE ignored. Otherwise a connection that breaks would end this worker."""
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    with _ending_after(item, _MORE_SECONDS):
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        if _SERVER in config.stash:
            config.stash[_SERVER].communicate()
        if _STARTING in config.stash:
            config.stash[_STARTING].join()  # after Ctrl-C, the node may still be starting
        for started in state.load_all():
            starter = starter_of(started)
            if started.kind == BrokerKind.NODE and starter.is_running(started):
                starter.kill(started, 0)  # a clean stop takes six seconds, and its data is deleted anyway
            starter.stop(started)
        shutil.rmtree(os.environ["MQTOOL_SUITE_STATE"], ignore_errors=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """If the whole suite runs, start RabbitMQ while the workers collect the tests."""
    config = session.config
    whole = getattr(config.option, "numprocesses", None) and config.args == config.getini("testpaths")
    if whole and from_environment() is None and STARTERS[BrokerKind.NODE].is_available():
        where = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        config.stash[_STARTING] = threading.Thread(target=_started_once, args=(BrokerKind.NODE, where), daemon=True)
        config.stash[_STARTING].start()


def _started_once(kind: BrokerKind, shared: Path) -> TestBroker:
    """Return the broker of this kind that all workers share. The first worker that asks for it starts it."""
    remembered = shared / f"{kind}.json"
    with (shared / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not remembered.exists():
            like = LIKE if kind is BrokerKind.EMBEDDED else None
            starter = _AS_INSTALLED if kind is BrokerKind.NODE else STARTERS[kind]
            started = starter.start(Wanted(f"suite-{kind}", free_port(), stream_port=0, like=like))
            connect_within(90, lambda: Connection(parse_addresses(started.url))).close()
            name = "rabbitmq" if kind is BrokerKind.NODE else str(kind)
            found = TestBroker(
                name, started.url, str(started.details["management"]), streams=str(started.details["streams"])
            )
            remembered.write_text(json.dumps(asdict(found)))
    return TestBroker(**json.loads(remembered.read_text()))


@pytest.fixture(scope="session")
def rabbitmq(shared: Path) -> TestBroker | None:
    """RabbitMQ: the one at MQTOOL_TEST_URL, or a private node; None if neither is available."""
    if (given := from_environment()) is not None:
        return given
    return _started_once(BrokerKind.NODE, shared) if STARTERS[BrokerKind.NODE].is_available() else None


@pytest.fixture(scope="session")
def embedded(shared: Path) -> TestBroker:
    """The embedded broker, in its own process."""
    return _started_once(BrokerKind.EMBEDDED, shared)


@pytest.fixture(scope="session")
def emptied() -> Iterator[list[TestBroker]]:
    """Virtual hosts on RabbitMQ that earlier tests have emptied, for reuse."""
    vhosts: list[TestBroker] = []
    yield vhosts
    for each in vhosts:
        each.drop_vhost()


@pytest.fixture(autouse=True)
def no_exception_is_lost() -> Iterator[None]:
    """Fail the test during which asyncio reports an exception that nobody retrieved, from a task of this process."""
    lost: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lost.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)
    assert not [message for message in lost if "never retrieved" in message]


@pytest.fixture(params=["embedded", "rabbitmq"])
def broker(request: pytest.FixtureRequest, emptied: list[TestBroker]) -> Iterator[TestBroker]:
    """Each broker under test in turn, with an empty virtual host that no other test uses."""
    found: TestBroker | None = request.getfixturevalue(request.param)
    if found is None:
        skip_or_fail("rabbitmq-server is not installed, and MQTOOL_TEST_URL is not set")
        return
    may_share = found.kind == "rabbitmq" and not request.node.get_closest_marker("own_vhost")
    fresh = emptied.pop() if may_share and emptied else found.with_fresh_vhost(f"test-{uuid.uuid4().hex[:12]}")
    for mark in request.node.iter_markers("until"):
        if fresh.differs_since(*mark.args):
            fresh.drop_vhost()
            pytest.skip(f"RabbitMQ {mark.args[0]}: {mark.args[1]}")
    for mark in request.node.iter_markers("differs_since"):
        if fresh.differs_since(*mark.args):
            request.applymarker(pytest.mark.xfail(reason=f"RabbitMQ {mark.args[0]}: {mark.args[1]}", strict=True))
    yield fresh
    if may_share and fresh.emptied():
        emptied.append(fresh)
    else:
        fresh.drop_vhost()


@pytest.fixture
def no_other_firehose(shared: Path) -> Iterator[None]:
    """Keep other tests with this fixture from running at the same time.

    If the firehoses of two virtual hosts are switched on or off at the same time, RabbitMQ may undo one of the changes.
    """
    with (shared / "firehose.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def connection(broker: TestBroker) -> Iterator[Connection]:
    """An open connection of mqtool's own client."""
    with Connection(parse_addresses(broker.url)) as connection:
        yield connection


@pytest.fixture
def shell(broker: TestBroker, tmp_path: Path) -> Iterator[Shell]:
    """Run mqtool as a user does, against the test's broker. Commands that are still running are killed afterwards."""
    streams = {"MQTOOL_STREAM_PORT": str(urlsplit(broker.streams).port)} if broker.streams else {}
    with Shell(tmp_path, {"MQTOOL_URL": broker.url, **streams}) as shell:
        yield shell


@pytest.fixture
def lonely_shell(tmp_path: Path) -> Iterator[Shell]:
    """Run mqtool where no broker is configured."""
    with Shell(tmp_path, {}) as shell:
        yield shell
