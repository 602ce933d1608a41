"""A pytest plugin with the fixtures `amqp_broker`, `amqp_vhost` and `amqp_tls`.

    def test_something(amqp_vhost):
        connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost.url))

The broker is started once per session (per pytest-xdist worker), in memory, on a free port. It behaves like RabbitMQ
4.2; to change that, set `amqp_broker_like` in pytest's configuration, in quotes in pyproject.toml: "4.3". With
`pytest --amqp-like 3.10,4.3`, each test that uses the broker runs once for each of these versions.

    @pytest.mark.amqp_recording("incident.ndjson")
    def test_incident(amqp_vhost): ...

replays a recording into the broker while the test runs. The marker takes the arguments of
`mqtool.broker.embedded.replay()`, except `broker`.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqtool.errors import MqtoolError

if TYPE_CHECKING:
    import pluggy

    from mqtool.broker.embedded.in_process import EmbeddedBroker, Vhost
    from mqtool.broker.embedded.testing.authority import Authority


class _AroundTests:
    """Says in a failed test's report what happened on the broker, and undoes all faults at the end of every test.

    Both happen before the test's fixtures are torn down.
    """

    def __init__(self, broker: "EmbeddedBroker") -> None:
        self._broker = broker

    @pytest.hookimpl(hookwrapper=True)  # wrapper=True, which replaces it, needs pytest 8
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> "Generator[None, pluggy.Result[pytest.TestReport], None]":
        report = (yield).get_result()
        vhost = getattr(item, "funcargs", {}).get("amqp_vhost")
        if call.when == "call" and report.failed and vhost is not None:
            report.sections.append(("amqp_vhost", vhost.now(lambda broker, name: broker.describe(name))))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._broker.faults.clear()


@pytest.fixture(scope="session")
def amqp_broker(request: pytest.FixtureRequest) -> "Iterator[EmbeddedBroker]":
    """An embedded AMQP broker that records what happens to messages. Connect to `amqp_broker.url`."""
    # Not imported at the top: pytest loads this module in every project that has mqtool installed.
    from mqtool.broker.embedded.in_process import EmbeddedBroker
    from mqtool.broker.embedded.model.profile import DEFAULT, profile

    if request.config.getoption("--amqp-like") is not None and not hasattr(request, "param"):
        pytest.fail(
            "--amqp-like cannot run this test once per version, because it gets amqp_broker by getfixturevalue(): "
            'name amqp_broker or amqp_vhost in its arguments, or in @pytest.mark.usefixtures("amqp_broker")',
            pytrace=False,
        )
    try:
        like = getattr(request, "param", None) or request.config.getini("amqp_broker_like") or DEFAULT
        profile(like)
        failure = None
    except (pytest.UsageError, TypeError, ValueError) as error:  # pytest refuses a number in TOML
        failure = f'amqp_broker_like: {error}; in TOML, write the version in quotes: amqp_broker_like = "4.3"'
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    with EmbeddedBroker(management_port=0, recording=True, like=like) as broker:
        around_tests = _AroundTests(broker)
        request.config.pluginmanager.register(around_tests)
        yield broker
        request.config.pluginmanager.unregister(around_tests)


@pytest.fixture
def amqp_vhost(amqp_broker: "EmbeddedBroker") -> "Iterator[Vhost]":
    """A virtual host for one test. Connect to `amqp_vhost.url`; `amqp_vhost.faults` injects faults."""
    with amqp_broker.fresh_vhost() as vhost:
        yield vhost


@pytest.fixture(scope="session")
def amqp_tls(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    """A throwaway certificate authority, for `EmbeddedBroker(tls=amqp_tls.tls())`. Clients trust `amqp_tls.ca`."""
    from mqtool.broker.embedded.testing.authority import new_authority

    try:
        return new_authority(tmp_path_factory.mktemp("amqp_tls"))
    except FileNotFoundError:
        pytest.skip("amqp_tls needs the command openssl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("amqp_broker_like", "the RabbitMQ that amqp_broker behaves like, such as 4.3", default="")
    parser.getgroup("mqtool").addoption(
        "--amqp-like",
        metavar="VERSIONS",
        help="run each test that uses amqp_broker or amqp_vhost once for each of these versions of RabbitMQ, such as "
        "3.10,4.3, and list at the end the tests that pass with some of them only",
    )


def pytest_configure(config: pytest.Config) -> None:
    if (wanted := config.getoption("--amqp-like")) is not None:
        from mqtool.broker.embedded.testing.over_versions import OverVersions, versions

        try:
            config.pluginmanager.register(OverVersions(versions(wanted)))
        except ValueError as error:
            raise pytest.UsageError(f"--amqp-like: {error}") from error
    config.addinivalue_line(
        "markers",
        "amqp_recording(path, speed='max', where=None, patience=10): play a recording into amqp_vhost, or amqp_broker, "
        "while the test runs; the path is relative to the test's file",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and item.get_closest_marker("amqp_recording") is not None:
        # A new list: the cases of a parametrized test share the old one, and only one of them may have the marker.
        item.fixturenames = [*item.fixturenames, "_amqp_recording"]


@pytest.fixture
def _amqp_recording(request: pytest.FixtureRequest) -> Iterator[None]:
    """Replay the recording that the marker names, once all other fixtures are set up."""
    from mqtool.broker.embedded.testing.replay import check_names, explained, replaying

    marker = request.node.get_closest_marker("amqp_recording")
    places = [name for name in ("amqp_vhost", "amqp_broker") if name in request.fixturenames]
    if not places:
        pytest.fail("amqp_recording is for tests that use amqp_vhost or amqp_broker", pytrace=False)
    given, options = [*marker.args], {**marker.kwargs}
    if "path" in options:
        given.append(options.pop("path"))
    if len(given) != 1 or not isinstance(given[0], str | Path):
        usage = 'amqp_recording needs the path of one recording, such as @pytest.mark.amqp_recording("incident.ndjson")'
        pytest.fail(usage, pytrace=False)
    path = request.path.parent / given[0]
    failure = None
    try:
        check_names(options)
        with replaying(request.getfixturevalue(places[0]), path, **options):
            yield
    except OSError as error:
        failure = str(error)
    except MqtoolError as error:
        failure = explained(error)
    if failure is not None:
        pytest.fail(f'amqp_recording("{given[0]}"): {failure}', pytrace=False)
