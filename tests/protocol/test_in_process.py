"""The embedded broker in users' tests: in the process of the tests, and on their event loop."""

import asyncio
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, NackError

from mqtool.broker.embedded import EmbeddedBroker, in_process
from mqtool.broker.embedded.in_process import Vhost
from mqtool.broker.embedded.testing.questions import QueueQuestions
from tests.brokers import large
from tests.protocol.conftest import Api

ROOT = Path(__file__).parents[2]


@pytest.fixture
def vhost(amqp_vhost: Vhost) -> Vhost:
    return amqp_vhost


@pytest.fixture
def channel(vhost: Vhost) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("jobs")
        yield channel


def test_the_broker_can_run_on_the_callers_event_loop_without_a_thread() -> None:
    """`async with EmbeddedBroker()` runs the broker on the caller's event loop, without starting a thread."""

    async def greeted() -> bytes:
        async with EmbeddedBroker() as broker:
            assert {*threading.enumerate()} <= threads
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(broker.url).port)
            writer.write(b"AMQP\x00\x00\x09\x01")
            greeting = await reader.readexactly(11)
            writer.close()
        return greeting

    threads = {*threading.enumerate()}
    assert asyncio.run(greeted())[7:] == b"\x00\x0a\x00\x0a"  # connection.start


def test_importing_the_broker_loads_no_heavy_library() -> None:
    """`from mqtool.broker.embedded import EmbeddedBroker` imports none of the libraries that the broker does not
    need, such as pika, typer and docker.
    """
    heavy = ("pika", "typer", "rich", "docker", "requests", "sqlite3", "pytest")
    program = "import sys; from mqtool.broker.embedded import EmbeddedBroker; "
    program += f"print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_published_finds_messages_by_exchange_routing_key_and_queue(vhost: Vhost, channel: BlockingChannel) -> None:
    """In a test with the pytest fixture amqp_vhost, amqp_vhost.published() finds messages by exchange, routing key or
    queue, and returns them with all their properties. The list amqp_vhost.unrouted contains the unroutable messages.
    """
    channel.queue_bind("jobs", "amq.topic", "order.*")
    properties = BasicProperties(content_type="application/json", headers={"try": 1}, message_id="m1", priority=3)
    channel.basic_publish("amq.topic", "order.new", json.dumps({"id": 7}), properties)
    channel.basic_publish("amq.topic", "invoice.new", b"lost")
    (order,) = vhost.published(exchange="amq.topic", routing_key="order.new")
    assert (order.exchange, order.routing_key, order.queues) == ("amq.topic", "order.new", ("jobs",))
    assert (order.body, order.json(), order.headers) == (b'{"id": 7}', {"id": 7}, {"try": 1})
    assert order.properties == {"content_type": "application/json", "message_id": "m1", "priority": 3}
    assert vhost.published(count=2).bodies == [order.body, b"lost"]
    assert vhost.unrouted.bodies == [b"lost"]
    assert vhost.published(queue="jobs").bodies == [order.body]
    assert not vhost.published(exchange="amq.direct", timeout=0)


def test_the_method_one_of_published_returns_the_only_message_or_raises_an_error(
    vhost: Vhost, channel: BlockingChannel
) -> None:
    """In a user's test, published(…).one() returns the matching message if there is exactly one. Otherwise, one()
    raises AssertionError, whose text shows what was published.
    """
    channel.basic_publish("amq.topic", "order.new", b"7")
    assert vhost.published(exchange="amq.topic").one().body == b"7"
    with pytest.raises(AssertionError, match=r"^0 messages instead of one: \[\] \(what happened: .*'order.new'.*b'7'"):
        vhost.published(exchange="amq.topc", timeout=0).one()
    channel.basic_publish("amq.topic", "order.new", b"8")
    with pytest.raises(AssertionError, match=r"^2 messages instead of one: .*b'7'.*b'8'"):
        vhost.published(count=2).one()


FAILING = """
import pika

def test_a_mistyped_exchange(amqp_vhost):
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        connection.channel().basic_publish("amq.topic", "order.new", b"7")
    (event,) = amqp_vhost.published(exchange="amq.topc", timeout=0)

def test_nothing_was_published(amqp_vhost):
    assert False

def test_passes(amqp_vhost):
    pass

def test_without_a_broker():
    assert False
"""


@large
def test_pytests_report_of_a_failed_test_shows_what_was_published(tmp_path: Path) -> None:
    """If a test that uses the fixture amqp_vhost fails, pytest's report shows what was published, whatever the reason
    for the failure.
    """
    (tmp_path / "test_app.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "not enough values to unpack" in done.stdout
    section = "- amqp_vhost -"
    assert done.stdout.count(section) == 2, "only the failed tests that used the fixture"
    assert re.search(rf"{section}-*\nwhat happened: <published 'amq.topic' 'order.new' → no queue: b'7'>", done.stdout)
    assert re.search(rf"{section}-*\nnothing was published", done.stdout)


def test_the_result_of_published_says_why_the_broker_closed_a_channel(
    vhost: Vhost, channel: BlockingChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """If the broker refuses a client's queue declaration in a user's test, and closes the channel with error 404 or
    406, the repr of what published() returns contains the code and the error text, so that a failed assertion shows
    them. The broker also logs them.
    """
    caplog.set_level(logging.INFO, "mqtool.broker.embedded")
    first, second = channel.connection.channel(), channel.connection.channel()
    with pytest.raises(ChannelClosedByBroker):
        first.queue_declare("missing", passive=True)
    with pytest.raises(ChannelClosedByBroker):
        second.queue_declare("jobs", durable=True)
    happened = repr(vhost.published(timeout=0))
    for why in ("404 NOT_FOUND - no queue 'missing'", "406 PRECONDITION_FAILED - inequivalent arg 'durable'"):
        assert f"<channel closed: {why}" in happened
        assert f" closed: {why}" in caplog.text.replace("\\'", "'")


def test_the_result_of_published_says_why_the_broker_closed_a_connection(
    vhost: Vhost, channel: BlockingChannel
) -> None:
    """If the broker closes a client's connection in a user's test, the repr of what published() returns contains the
    reply code and text, so that a failed assertion shows them.
    """
    assert vhost.faults.close_connections(501, "FRAME_ERROR - Closed by a test") > 0
    with pytest.raises(ConnectionClosedByBroker):
        channel.connection.process_data_events(60)
    assert "<connection closed: 501 FRAME_ERROR - Closed by a test>" in repr(vhost.published(timeout=0))


def test_the_documentation_names_the_default_timeouts_of_queries() -> None:
    """The table of queries in docs/how-to/testing.md gives the default timeouts of the query methods."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "testing.md").read_text()
    documented = re.findall(r"\.(\w+)\([^)`]*timeout=(\d+)\)` \|", page)
    assert [name for name, _ in documented] == ["published", "messages", "wait_for"]
    for name, seconds in documented:
        query = getattr(QueueQuestions if name == "messages" else Vhost, name)
        assert inspect.signature(query).parameters["timeout"].default == float(seconds)


def test_a_query_for_a_misspelled_queue_suggests_a_similar_name(vhost: Vhost, channel: BlockingChannel) -> None:
    """If a user's test calls amqp_vhost.queue() with the name of a queue that does not exist, the repr of the
    returned object reports that the queue does not exist, and suggests an existing queue with a similar name.
    """
    assert channel.is_open, "it has declared the queue jobs"
    meant = "queue 'jbos' does not exist: did you mean 'jobs'?"
    misspelled = vhost.queue("jbos")
    for shown in (misspelled, misspelled.messages(timeout=0), misspelled.acked):
        assert meant in repr(shown)
    assert "queue 'billing' does not exist" in repr(vhost.queue("billing").rejected)


def test_a_nacked_message_is_not_shown_as_unrouted(vhost: Vhost, channel: BlockingChannel) -> None:
    """If the embedded broker's fault `nack_publishes` nacks a message, and the client publishes the message again,
    published() returns the message twice: once as nacked, and once with its queue. The list `unrouted` does not
    contain the message.
    """
    channel.confirm_delivery()
    vhost.faults.nack_publishes("jobs")
    with pytest.raises(NackError):
        channel.basic_publish("", "jobs", b"one")
    channel.basic_publish("", "jobs", b"one")
    assert repr(vhost.published(count=2)) == "[<published 'jobs' → nacked: b'one'>, <published 'jobs' → jobs: b'one'>]"
    assert vhost.unrouted == []


def test_a_queue_object_lists_messages_by_what_happened_to_them(vhost: Vhost, channel: BlockingChannel) -> None:
    """In a user's test, amqp_vhost.queue("jobs") gives access to the ready messages of the queue `jobs`, and lists the
    acknowledged, the rejected and the requeued messages separately. amqp_vhost.reset() purges the queue, and empties
    these lists.
    """
    jobs = vhost.queue("jobs")
    for number in range(5):
        channel.basic_publish("", "jobs", b"%d" % number)
    tags = [channel.basic_get("jobs")[0].delivery_tag for _ in range(3)]
    channel.basic_ack(tags[0])
    channel.basic_reject(tags[1], requeue=False)
    channel.basic_nack(tags[2], requeue=True)
    vhost.wait_for(lambda: jobs.requeued)
    assert (jobs.acked.bodies, jobs.rejected.bodies, jobs.requeued.bodies) == ([b"0"], [b"1"], [b"2"])
    assert [(each.body, each.redelivered) for each in jobs.messages(3)] == [(b"2", True), (b"3", False), (b"4", False)]
    channel.basic_get("jobs", auto_ack=True)
    assert jobs.acked.bodies == [b"0", b"2"]
    vhost.reset()
    assert not jobs.acked
    assert not jobs.messages(timeout=0)
    assert not vhost.published(timeout=0)
    channel.queue_declare("jobs", passive=True)


def test_published_waits_for_a_message(vhost: Vhost, channel: BlockingChannel) -> None:
    """In a user's test, published() waits until a matching message is published. If none is published before the
    timeout, the repr of the empty result shows which other messages were published.
    """
    timer = threading.Timer(0.05, lambda: channel.basic_publish("", "jobs", b"late"))
    timer.start()
    assert vhost.published().bodies == [b"late"]
    timer.join()
    told = "what happened: <published 'jobs' → jobs: b'late'>"
    with pytest.raises(AssertionError, match=told):
        vhost.wait_for(lambda: vhost.queue("jobs").acked, timeout=0.01)
    assert told in repr(vhost.published("orders", timeout=0))
    assert repr(vhost.queue("jobs")) == "<queue 'jobs': 1 ready, 0 unacked, 0 consumers, 0 acked, 0 rejected>"
    assert repr(vhost.queue("none").messages(timeout=0)) == "[] (queue 'none' does not exist)"


def test_published_does_not_block_an_event_loop() -> None:
    """If a user's test runs an embedded broker on the test's own event loop, no call blocks this loop: published()
    returns immediately, wait_for() raises RuntimeError, and `await broker.until()` waits without blocking.
    """

    async def ask() -> None:
        async with EmbeddedBroker(recording=True) as broker:
            assert not broker.published()
            with pytest.raises(RuntimeError, match="await until"):
                broker.wait_for(broker.published)
            publishing = asyncio.create_task(asyncio.to_thread(_publish, broker.url))
            await broker.until(lambda: broker.published(routing_key="jobs"))
            await publishing
            with broker.faults.refuse_connections(), pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", broker.port)

    asyncio.run(ask())


def _publish(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().basic_publish("", "jobs", b"1")


def test_administrators_can_query_messages_and_inject_faults_over_http(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """Through /api/mqtool, an administrator can query the messages that were published to an embedded broker, and
    inject faults. If the broker does not record messages, a query returns 409. Requests from users without the tag
    `administrator` return 401.
    """
    with EmbeddedBroker(management_port=0, recording=True) as broker:
        api = api_of(broker)
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare("jobs")
            channel.basic_publish("", "jobs", b"1", BasicProperties(headers={"a": 1}, priority=2))
            channel.basic_publish("amq.fanout", "", b"\xff")
            channel.basic_get("jobs", auto_ack=True)
        shown = {"exchange": "", "routing_key": "jobs", "queues": ["jobs"], "redelivered": False, "body": "1"}
        job = {**shown, "headers": {"a": 1}, "properties": {"priority": 2}}
        assert api("GET", "mqtool/published/%2F?routing_key=jobs") == (200, [job])
        assert api("GET", "mqtool/queues/%2F/jobs/acked") == (200, [job])
        assert api("GET", "mqtool/queues/%2F/jobs/messages") == (200, [])
        assert api("GET", "mqtool/unrouted/%2F")[1][0]["body_base64"] == "/w=="
        assert api("POST", "mqtool/faults", {"fault": "go_silent", "seconds": 60}) == (201, {"id": 1, "met": 0})
        assert api("POST", "mqtool/faults", {"fault": "cut_connections"}) == (201, {"id": None, "met": 0})
        silence = {"id": 1, "fault": "go_silent", "arguments": {"seconds": 60}}
        assert api("GET", "mqtool/faults") == (200, [silence])
        assert api("DELETE", "mqtool/faults")[0] == 204
        assert api("DELETE", "mqtool/faults/1")[0] == 404
        assert api("POST", "mqtool/reset", {})[0] == 204
        assert api("GET", "mqtool/published/%2F") == (200, [])
        api("PUT", "users/ann", {"password": "ann", "tags": "monitoring"})
        assert api("GET", "mqtool/faults", user="ann", password="ann")[0] == 401
    with EmbeddedBroker(management_port=0) as broker:
        assert api_of(broker)("GET", "mqtool/published/%2F")[0] == 409


def test_a_query_over_http_for_a_misspelled_name_is_refused(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """A query to /api/mqtool for a virtual host or queue that has never existed returns 404, not an empty list, so
    that a test with a misspelled name fails. A query with a misspelled parameter returns 400.
    """
    with EmbeddedBroker(management_port=0, recording=True) as broker:
        api = api_of(broker)
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare("gone")
            channel.basic_publish("", "gone", b"1")
            channel.basic_get("gone", auto_ack=True)
            channel.queue_delete("gone")
        for path in (
            "published/nope",
            "unrouted/nope",
            "queues/%2F/nope/messages",
            "queues/%2F/nope/acked",
            "queues/nope/ping/acked",
            "queues/nope/ping/messages",
        ):
            assert api("GET", f"mqtool/{path}")[0] == 404, path
        assert api("GET", "mqtool/queues/%2F/nope/messages?count=1&timeout=0.05")[0] == 404
        status, refusal = api("GET", "mqtool/published/%2F?exhange=x")
        reason = "unknown query parameter 'exhange': one of exchange, routing_key, queue, count, timeout"
        assert (status, refusal["reason"]) == (400, reason)
        assert api("GET", "mqtool/queues/%2F/gone/messages?exchange=x")[0] == 400
        status, acked = api("GET", "mqtool/queues/%2F/gone/acked?routing_key=gone")
        assert (status, [each["body"] for each in acked]) == (200, ["1"]), "a queue that existed has its recording"


def test_a_query_over_http_waits_for_a_queue_to_be_declared(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """If a query to /api/mqtool/queues with count=1 names a queue that is not declared yet, the query waits until the
    queue exists and has a message.
    """
    with EmbeddedBroker(management_port=0, recording=True) as broker, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api_of(broker), "GET", "mqtool/queues/%2F/jobs/messages?count=1&timeout=30")
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_declare("jobs")
            _publish(broker.url)
            assert asked.result()[0] == 200


@pytest.mark.skipif(shutil.which("node") is None, reason="needs the command node")
def test_the_javascript_helper_in_the_documentation_accepts_responses_without_a_body() -> None:
    """The documentation's example for Node.js contains the helper function api(). It accepts a response without a
    body, such as the response to a reset of the broker, and returns the results of queries.
    """
    page = (ROOT / "docs/how-to/testing-in-any-language.md").read_text()
    helper = page[page.index("const api =") : page.index("test(")]
    program = f'{helper}\nawait api("reset", {{ vhost: "/" }});\nconsole.log((await api("published/%2F")).length);'
    with EmbeddedBroker(management_port=0, recording=True) as broker:
        done = subprocess.run(
            ["node", "--input-type=module", "-e", program],
            env={**os.environ, "MANAGEMENT_URL": str(broker.management_url)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_a_query_over_http_waits_for_the_given_number_of_messages(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """A query to /api/mqtool/published with a count and a timeout is answered as soon as this number of messages has
    been published, or after the timeout. If the count or the timeout is invalid, the query returns 400.
    """
    with EmbeddedBroker(management_port=0, recording=True) as broker, ThreadPoolExecutor(1) as pool:
        api = api_of(broker)
        asked = pool.submit(api, "GET", "mqtool/published/%2F?routing_key=jobs&count=2&timeout=30")
        _publish(broker.url)
        _publish(broker.url)
        status, found = asked.result()
        assert (status, [message["body"] for message in found]) == (200, ["1", "1"])
        assert len(api("GET", "mqtool/published/%2F?count=3&timeout=0.05")[1]) == 2
        for query in ("count=many", "count=-1", "timeout=-4", "timeout=nan", "count=1&timeout=nan"):
            assert api("GET", f"mqtool/published/%2F?{query}")[0] == 400, query


def test_a_query_over_http_with_a_timeout_alone_waits_for_one_message(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """A query to /api/mqtool/published with a timeout but no count waits for one message. If the timeout is 0, the
    query is answered immediately.
    """
    with EmbeddedBroker(management_port=0, recording=True) as broker, ThreadPoolExecutor(1) as pool:
        api = api_of(broker)
        assert api("GET", "mqtool/published/%2F?timeout=0") == (200, [])
        asked = pool.submit(api, "GET", "mqtool/published/%2F?timeout=30")
        _publish(broker.url)
        status, found = asked.result()
        assert (status, [message["body"] for message in found]) == (200, ["1"])


def test_an_async_condition_is_refused() -> None:
    """The embedded broker's methods until() and wait_for() raise TypeError if the condition is an async function,
    because the coroutine that an async function returns always counts as true.
    """

    async def never() -> bool:
        return False

    async def ask() -> None:
        async with EmbeddedBroker(recording=True) as broker:
            with pytest.raises(TypeError, match="the condition is an async function"):
                await broker.until(never)

    asyncio.run(ask())
    with EmbeddedBroker(recording=True) as broker, pytest.raises(TypeError, match="the condition is an async function"):
        broker.wait_for(never)


def test_a_failed_assertion_names_the_queue_whose_messages_were_not_acknowledged(
    vhost: Vhost, channel: BlockingChannel
) -> None:
    """If a user's test fails because messages were delivered but not acknowledged, the error names the queue and the
    number of these messages. If the consumer's channel has been closed in the meantime, the error says that the
    messages are ready again.
    """
    channel.basic_publish("", "jobs", b"1")
    assert channel.basic_get("jobs")[2] == b"1"
    assert "queue 'jobs': 1 message delivered but not acknowledged" in repr(vhost.queue("jobs").acked)
    channel.close()
    with pytest.raises(
        AssertionError, match=r"queue 'jobs': 1 message delivered before and ready again \(requeued, or"
    ):
        vhost.wait_for(lambda: vhost.queue("jobs").acked, timeout=0.01)


def test_the_faults_in_force_are_listed_if_wait_for_fails(vhost: Vhost, channel: BlockingChannel) -> None:
    """If wait_for() fails in a user's test, the error lists the embedded broker's faults that are in force, with
    their arguments, but not those that have ended.
    """
    channel.queue_declare("q")
    vhost.faults.nack_publishes("q")
    vhost.faults.delay_confirms(seconds=60)
    vhost.faults.refuse_connections().undo()
    with pytest.raises(AssertionError) as failure:
        vhost.wait_for(lambda: False, timeout=0.01)
    assert str(failure.value).splitlines()[-2:] == [
        "fault in force: nack_publishes(queue='q', count=1)",
        "fault in force: delay_confirms(seconds=60.0)",
    ]


def test_if_wait_for_fails_the_error_says_that_the_queue_of_a_fault_does_not_exist(vhost: Vhost) -> None:
    """If wait_for() fails in a user's test while a fault is in force for a queue that does not exist, the error names
    the queue, and says that the fault has had no effect so far.
    """
    vhost.faults.nack_publishes("shipping")
    with pytest.raises(
        AssertionError,
        match=r"fault in force: nack_publishes\(queue='shipping', count=1\), without effect so far, because queue "
        "'shipping' does not exist",
    ):
        vhost.wait_for(lambda: False, timeout=0.01)


def test_a_stopped_broker_can_be_started_again() -> None:
    """An EmbeddedBroker can be started again after stop(), and after a start() that raised OSError because the
    broker's port was in use.
    """
    broker = EmbeddedBroker()
    for _ in range(3):
        with broker:
            _publish(broker.url)
    with broker:
        taken = EmbeddedBroker(port=broker.port)
        for _ in range(2):
            with pytest.raises(OSError, match="in use"):
                taken.start()
    with taken:
        _publish(taken.url)


def test_stopping_a_broker_that_hangs_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the embedded broker's event loop hangs, stop() raises a TimeoutError that names the hanging function, instead
    of waiting forever.
    """
    monkeypatch.setattr(in_process, "_STOPPING_SECONDS", 0.1)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait()

    with EmbeddedBroker() as broker:
        assert broker._loop is not None
        broker._loop.call_soon_threadsafe(hang)
        hangs.wait()
        with pytest.raises(TimeoutError, match="did not stop") as raised:
            broker.stop()
        assert "in hang" in str(raised.value)
        monkeypatch.undo()
        goes_on.set()


def test_published_without_recording_raises_an_error() -> None:
    """If an EmbeddedBroker was started without recording=True, published() raises LookupError, whose text names this
    option.
    """
    with EmbeddedBroker() as broker, pytest.raises(LookupError, match="recording=True"):
        broker.published()


def test_published_raises_an_error_after_the_broker_was_stopped() -> None:
    """After the embedded broker has been stopped, published() raises AssertionError with the text "the broker has been
    stopped".
    """
    with EmbeddedBroker(recording=True) as broker:
        pass
    with pytest.raises(AssertionError, match="the broker has been stopped"):
        broker.published(timeout=0)


def test_a_version_that_is_a_number_is_refused() -> None:
    """EmbeddedBroker(like=4.3) raises ValueError, whose text says that the version must be a string."""
    with pytest.raises(ValueError, match=r'like must be a string, such as "4\.3", not 4\.3'):
        EmbeddedBroker(like=4.3)


@large
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "written", ["[tool.pytest]\namqp_broker_like = 4.3", "[tool.pytest.ini_options]\namqp_broker_like = 3.10"]
)
def test_the_error_about_a_version_without_quotes_in_pyproject_says_to_add_quotes(tmp_path: Path, written: str) -> None:
    """In pyproject.toml, the version amqp_broker_like must be a string. If it is a number, tests fail with an error
    that names the setting and says to write the version in quotes.
    """
    if "ini_options" not in written and pytest.version_tuple < (9, 0):
        pytest.skip("pytest reads [tool.pytest] from version 9 on")
    (tmp_path / "test_mine.py").write_text("def test_one(amqp_vhost): pass")
    (tmp_path / "pyproject.toml").write_text(written)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.search("amqp_broker_like.*in TOML, write the version in quotes", done.stdout), done.stdout
    assert "Traceback" not in done.stdout


OVER_VERSIONS = inspect.cleandoc("""
    import pika
    import pytest

    def declare(url, **settings):
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().queue_declare("jobs", **settings)

    @pytest.mark.parametrize("durable", [True, False], ids=["durable", "transient"])
    def test_a_queue(amqp_vhost, durable):
        declare(amqp_vhost.url, durable=durable)

    @pytest.fixture
    def queue(amqp_vhost):
        declare(amqp_vhost.url)

    def test_in_a_fixture(queue): pass

    def test_of_something_else(): pass

    def test_that_always_fails(amqp_vhost):
        assert amqp_vhost is None
""")


@large
@pytest.mark.sampled(1)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_amqp_like_runs_each_test_once_per_version_and_lists_those_with_different_results(
    tmp_path: Path, workers: str
) -> None:
    """`pytest --amqp-like 3.10,4.3.5,4.3` runs each test that uses the embedded broker once per version. The summary
    lists the tests that pass with some of the versions and fail with others, and says why they fail. If mqtool does not
    know a version, pytest ends with an error that names the version.
    """
    (tmp_path / "test_mine.py").write_text(OVER_VERSIONS)
    pytest_like = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers, "--amqp-like"]

    def output(*arguments: str) -> str:
        command = [*pytest_like, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    said = output("3.10,4.3.5,4.3")
    assert "4 failed, 8 passed, 1 error" in said, said
    listed = said.partition(" tests that depend on the version of RabbitMQ ")[2].partition("====\n")[2]
    reason = "declares a queue that is transient and not exclusive, which RabbitMQ 4.3.0 to 4.3.5 refuse"
    assert re.findall(r"^(test_mine.*)\n  fails with 4.3.5: test_mine.py:(\d+): (.*)", listed, re.MULTILINE) == [
        ("test_mine.py::test_a_queue[transient]: passes with 3.10, 4.3", "10", reason),
        ("test_mine.py::test_in_a_fixture: passes with 3.10, 4.3", "14", reason),
    ], listed
    assert "ERROR: --amqp-like: cannot behave like RabbitMQ 5.0, only like 3.10" in output("3.10,5.0")


OVERRIDDEN = {
    "conftest.py": inspect.cleandoc("""
        import pytest
        from mqtool.testing import EmbeddedBroker

        @pytest.fixture(scope="session")
        def amqp_broker():
            with EmbeddedBroker(recording=True, like="4.3") as broker:
                yield broker
    """),
    "ours/conftest.py": inspect.cleandoc("""
        import pytest
        from mqtool.testing import EmbeddedBroker

        @pytest.fixture(scope="session")
        def amqp_broker(request):
            with EmbeddedBroker(recording=True, like=getattr(request, "param", "4.2")) as broker:
                yield broker
    """),
    "test_mine.py": "def test_one(amqp_vhost): pass",
    "ours/test_ours.py": "def test_two(amqp_vhost): pass",
}


@large
def test_amqp_like_fails_a_test_whose_broker_has_another_version(tmp_path: Path) -> None:
    """If a project's own fixture amqp_broker ignores the version that `pytest --amqp-like` requests, a test with this
    fixture fails for each version other than the fixture's. The error says how to change the fixture. Once the
    fixture has been changed accordingly, the test passes with and without the option.
    """
    (tmp_path / "ours").mkdir()
    for name, text in OVERRIDDEN.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--amqp-like", "3.10,4.3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(
        r"this test is to run with 3\.10, but the project's own fixture amqp_broker behaves like 4\.3: start it with "
        r'EmbeddedBroker\(recording=True, like=getattr\(request, "param", "4\.2"\)\)',
        done.stdout,
    ), done.stdout
    assert "tests that depend on the version" not in done.stdout
    done = subprocess.run(command[:-2], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@large
def test_amqp_like_fails_a_test_that_it_cannot_run_once_per_version(tmp_path: Path) -> None:
    """`pytest --amqp-like` cannot run a test once per version if the test gets the broker by getfixturevalue(). The
    test fails with an error, which says that the test must have the fixture as an argument instead. Without the
    option, the test passes.
    """
    (tmp_path / "test_mine.py").write_text("def test_one(request): request.getfixturevalue('amqp_vhost')")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

    def output(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "1 passed" in output()
    said = output("--amqp-like", "3.10,4.3")
    assert "1 failed" in said, said
    assert 'name amqp_broker or amqp_vhost in its arguments, or in @pytest.mark.usefixtures("amqp_broker")' in said


FIXTURES = inspect.cleandoc("""
    import sys
    import pika

    def test_of_something_else():
        assert not [each for each in sys.modules if each.startswith(("pamqp", "mqtool.broker.embedded.model"))]

    def test_one(amqp_vhost):
        connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost.url))
        connection.channel().queue_declare("jobs")
        amqp_vhost.faults.refuse_connections()

    def test_two(amqp_vhost, amqp_broker):
        connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost.url))
        connection.channel().queue_declare("jobs", durable=True)
        amqp_broker.faults.go_silent()

    def test_three(amqp_broker):
        connection = pika.BlockingConnection(pika.URLParameters(amqp_broker.url))
        assert connection._impl.server_properties["version"].startswith("4.3.")
""")


@large
def test_the_pytest_fixtures_isolate_tests(tmp_path: Path) -> None:
    """Each test that uses the pytest fixture amqp_vhost has its own virtual host, and the faults that a test injects
    end with this test. Tests without mqtool's fixtures do not import the broker.
    """
    (tmp_path / "test_mine.py").write_text(FIXTURES)
    (tmp_path / "pytest.ini").write_text("[pytest]\namqp_broker_like = 4.3\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "4 passed" in done.stdout, done.stdout
