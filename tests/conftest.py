"""Fixtures: the brokers of the matrix, and a shell to run mqtool in."""

import faulthandler
import fcntl
import itertools
import json
import logging
import os
import random
import shutil
import signal
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
from mqtool.broker import ports, state
from mqtool.broker.choice import STARTERS, BrokerKind, starter_of
from mqtool.broker.node import PrivateNodes
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Wanted
from tests.brokers import IN_CI, LIKE, TestBroker, from_environment, skip_or_fail
from tests.cli import preloaded
from tests.cli.shell import Shell

#: The server of preloaded commands, which ends when this does.
_SERVER = pytest.StashKey["subprocess.Popen[bytes]"]()
#: Where a worker says why it ends.
_STDERR = pytest.StashKey[int]()
#: A teardown that takes longer, or a test that takes so much longer than its timeout, hangs. To stop a RabbitMQ node
#: takes up to 60 s.
_MORE_SECONDS = 180
#: Starts RabbitMQ with the rates that it has by default. `mqtool broker up` has it collect more.
_AS_INSTALLED = PrivateNodes("RabbitMQ", ("management.rates_mode = basic",))
#: They start RabbitMQ nodes, in CI. They come first, so the first worker gets them: rarely two of them at a time.
_WITH_NODES = {
    "test_drill_kill_node_loses_nothing",
    "test_delayed_relay_continues_after_the_broker_was_killed",
    "test_drill_restart_broker_loses_nothing",
    "test_broker_up_starts_a_broker_and_broker_down_stops_it",
    "test_an_enabled_plugin_is_listed_immediately_and_after_a_restart",
    "test_a_cluster_of_private_nodes_keeps_messages_if_one_node_is_killed",
    "test_broker_commands_work_with_a_broker_in_docker",
    "test_a_conversion_resumes_after_the_broker_was_killed",
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on-both-brokers", action="store_true", help="run every test on RabbitMQ as well")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # the worker's own, which pytest does not capture
    # A busy machine is no failure; and CI looks more often than somebody who waits.
    hypothesis.settings.register_profile("no times", deadline=None, max_examples=100 if IN_CI else 10)
    hypothesis.settings.load_profile("no times")
    config.addinivalue_line(
        "markers",
        "differs_since(version, why): RabbitMQ behaves differently from this version on, so the test must fail there",
    )
    config.addinivalue_line(
        "markers",
        "once_on_rabbitmq(*names): one case for each value of these parameters runs on RabbitMQ, the others do not",
    )
    config.addinivalue_line(
        "markers",
        "keeps_messages: is about loss, order or recovery; a third of these tests run on RabbitMQ in `make test`, too",
    )
    config.addinivalue_line(
        "markers",
        "sampled(count): the test's cases are similar; outside CI, a run of the whole suite runs only this many",
    )
    config.addinivalue_line(
        "markers", "own_vhost(why): the test gets a virtual host that no other test uses before or after it"
    )
    # What a shell (in the background) or nohup ignores, all commands would inherit; a handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["MQTOOL_SUITE_STATE"] = tempfile.mkdtemp(prefix="mqtool-suite-")
        if preloaded.IS_POSSIBLE:
            config.stash[_SERVER] = preloaded.start_server()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    # What the suite starts is kept apart from what its user has started.
    os.environ["XDG_STATE_HOME"] = os.environ["MQTOOL_SUITE_STATE"]
    os.environ["XDG_CONFIG_HOME"] = os.environ["MQTOOL_SUITE_STATE"]
    for name in ("MQTOOL_URL", "AMQP_URL", "MQTOOL_STREAM_PORT", "MQTOOL_CONTEXT", "MQTOOL_DIALECT"):
        os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)  # after -k, which may have left RabbitMQ's cases alone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what RabbitMQ need not run and most cases of sampled tests; tests with RabbitMQ nodes come first."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    tried = set()
    third = itertools.cycle((True, False, False))
    on_embedded = {test for test, _, case in (item.nodeid.partition("[") for item in items) if "embedded" in case}
    for item in items:
        test, _, case = item.nodeid.partition("[")
        mark = item.get_closest_marker("once_on_rabbitmq")
        is_ours = item.path.parent.name == "integration" or (item.get_closest_marker("keeps_messages") and next(third))
        if not (config.getoption("on_both_brokers") or "rabbitmq" not in case or is_ours) and test in on_embedded:
            left_out.append(item)
        elif mark and (params := item.callspec.params)["broker"] == "rabbitmq":  # type: ignore[attr-defined]
            this = test, *(params[name] for name in mark.args)
            (left_out if this in tried else kept).append(item)
            tried.add(this)
        else:
            kept.append(item)
    if not IN_CI and not all(".py" in named for named in config.args):
        some = _sampled(kept)
        left_out += [item for item in kept if item not in some]
        kept = [item for item in kept if item in some]
    items[:] = sorted(kept, key=lambda item: item.name.partition("[")[0] not in _WITH_NODES)
    config.hook.pytest_deselected(items=left_out)


def _sampled(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the tests, but of those that are marked `sampled` only the first case and others, the same in each run."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = set()
    for test, alike in cases.items():
        if (mark := alike[0].get_closest_marker("sampled")) and mark.args[0] < len(alike):
            # By chance, because evenly spaced cases could all have the same value of one parameter.
            alike = [alike[0], *random.Random(test).sample(alike[1:], mark.args[0] - 1)]
        chosen |= set(alike)
    return chosen


@contextmanager
def _ending_after(item: pytest.Item, seconds: float) -> Iterator[None]:
    """End this worker, and print what its threads are doing, if the block takes longer.

    pytest-timeout's alarm does not ring twice. Nothing is left to end a teardown that hangs after a test has timed out;
    and if the alarm rings in a __del__(), Python ignores its exception, and the test goes on.
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
    """The test before has left us what keeps a connection that breaks from ending all tests of this worker."""
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    with _ending_after(item, _MORE_SECONDS):
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        if _SERVER in config.stash:
            config.stash[_SERVER].communicate()
        for started in state.load_all():
            starter = starter_of(started)
            if started.kind == BrokerKind.NODE and starter.is_running(started):
                starter.kill(started, 0)  # its data go with it: to put them away takes six seconds
            starter.stop(started)
        shutil.rmtree(os.environ["MQTOOL_SUITE_STATE"], ignore_errors=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """If the whole suite runs, start RabbitMQ while the workers collect the tests."""
    config = session.config
    whole = getattr(config.option, "numprocesses", None) and config.args == config.getini("testpaths")
    if whole and from_environment() is None and STARTERS[BrokerKind.NODE].is_available():
        where = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        threading.Thread(target=_started_once, args=(BrokerKind.NODE, where), daemon=True).start()


def _started_once(kind: BrokerKind, shared: Path) -> TestBroker:
    """Return a broker of that kind that the first worker starts for all of them."""
    remembered = shared / f"{kind}.json"
    with (shared / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not remembered.exists():
            like = LIKE if kind is BrokerKind.EMBEDDED else None
            starter = _AS_INSTALLED if kind is BrokerKind.NODE else STARTERS[kind]
            started = starter.start(Wanted(f"suite-{kind}", ports.free_port(), stream_port=0, like=like))
            connect_within(90, lambda: Connection(parse_addresses(started.url))).close()
            name = "rabbitmq" if kind is BrokerKind.NODE else str(kind)
            found = TestBroker(
                name, started.url, str(started.details["management"]), streams=str(started.details["streams"])
            )
            remembered.write_text(json.dumps(asdict(found)))
    return TestBroker(**json.loads(remembered.read_text()))


@pytest.fixture(scope="session")
def rabbitmq(shared: Path) -> TestBroker | None:
    """RabbitMQ: the one that the environment names, or a private node; None if neither is available."""
    if (given := from_environment()) is not None:
        return given
    return _started_once(BrokerKind.NODE, shared) if STARTERS[BrokerKind.NODE].is_available() else None


@pytest.fixture(scope="session")
def embedded(shared: Path) -> TestBroker:
    """The embedded broker in a process of its own."""
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
    """Each broker of the matrix in turn, with an empty virtual host that no other test uses."""
    found: TestBroker | None = request.getfixturevalue(request.param)
    if found is None:
        skip_or_fail("no rabbitmq-server is installed, and MQTOOL_TEST_URL names none")
        return
    may_share = found.kind == "rabbitmq" and not request.node.get_closest_marker("own_vhost")
    fresh = emptied.pop() if may_share and emptied else found.with_fresh_vhost(f"test-{uuid.uuid4().hex[:12]}")
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
    """No other test with this fixture runs meanwhile: if two virtual hosts' firehoses are switched at the same moment,
    RabbitMQ may switch one of them back.
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
    """Run mqtool as a user does, against the test's broker; end what the test left running."""
    streams = {"MQTOOL_STREAM_PORT": str(urlsplit(broker.streams).port)} if broker.streams else {}
    with Shell(tmp_path, {"MQTOOL_URL": broker.url, **streams}) as shell:
        yield shell


@pytest.fixture
def lonely_shell(tmp_path: Path) -> Iterator[Shell]:
    """Run mqtool where no broker is configured."""
    with Shell(tmp_path, {}) as shell:
        yield shell
