"""mqtool changes nothing in the libraries that it uses, and does not need pika's private methods."""

import subprocess
import sys
from pathlib import Path

import pytest
from pika.adapters.select_connection import SelectConnection

from mqtool.amqp import pika_private

ROOT = Path(__file__).parents[2]

#: Publishes, consumes and replays, on a broker of its own.
USE = """
    import json, tempfile
    from mqtool.amqp import Connection, Receiving, parse_addresses
    from mqtool.amqp.pika_private import CONNECTION
    from mqtool.broker.embedded import EmbeddedBroker, replay
    from mqtool.message import Message
    from mqtool.topology import Queue

    with EmbeddedBroker() as broker, Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        queue = channel.declare(Queue("q", arguments={"x-max-length": 100}))
        headers = {"text": "grün", "number": 1, "price": 0.99, "nested": [{"deep": -1.5}], "raw": b"\\xff"}
        messages = [Message(b"%d" % number, properties={"headers": headers}) for number in range(10)]
        assert len(list(channel.publish(messages, routing_key="q"))) == 10
        deliveries = list(channel.consume(queue, Receiving(count=10, timeout=20)))
        assert [delivery.body for delivery in deliveries] == [message.body for message in messages]
        assert all(delivery.headers == headers for delivery in deliveries)
        with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as recording:
            recording.write(json.dumps({"routing_key": "q", "exchange": "", "body": "again"}) + chr(10))
            recording.flush()
            assert replay(broker, recording.name)
        assert next(channel.consume(queue, Receiving(timeout=20))).body == b"again"
"""

#: Collects the attributes of all modules and classes of the libraries.
LOOK = """
    import importlib, inspect, pkgutil, sys
    import pika, rstream, typer.completion

    for library in (pika, rstream):
        for module in pkgutil.walk_packages(library.__path__, library.__name__ + "."):
            try:
                importlib.import_module(module.name)
            except ImportError:
                pass  # it needs a library that is not installed

    def looked_at():
        found = {}
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ("pika", "rstream", "typer"):
                for owner in (module, *(each for each in vars(module).values() if inspect.isclass(each))):
                    if getattr(owner, "__module__", name).partition(".")[0] in ("pika", "rstream", "typer"):
                        for attribute, value in vars(owner).items():
                            if attribute not in ("__warningregistry__", "_abc_impl", "__slotnames__"):
                                found[name, owner.__name__, attribute] = value
        return found

    before = looked_at()
"""

COMPARE = """
    after = looked_at()
    assert [key for key in before if after.get(key) is not before[key]] == []
    assert [key for key in after if key not in before] == []
    try:
        pika.data.encode_value([], 1.5)
    except pika.exceptions.UnsupportedAMQPFieldException:
        print("rejected")
"""


def run(*parts: str) -> str:
    script = "\n".join(line.removeprefix("    ") for part in parts for line in part.splitlines())
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_libraries_are_unchanged_after_a_program_has_used_mqtool() -> None:
    """After a program has published, consumed and replayed messages with mqtool, all modules and classes of pika,
    rstream and typer are unchanged.
    """
    assert run(LOOK, USE, COMPARE) == "rejected\n"


@pytest.mark.parametrize("name", pika_private._EXPECTED)
def test_mqtool_notices_that_a_private_method_of_pika_is_missing_or_has_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For speed, mqtool calls some private methods of pika. If one of them is missing or takes different arguments, the
    function pika_private.is_as_expected() returns False.
    """
    assert pika_private.is_as_expected()
    with monkeypatch.context() as changed:
        for each in SelectConnection.__mro__:
            if name in vars(each):
                changed.delattr(each, name)
        assert not pika_private.is_as_expected()
    with monkeypatch.context() as changed:
        changed.setattr(SelectConnection, name, lambda connection, another: (connection, another), raising=False)
        assert not pika_private.is_as_expected()


def test_mqtool_uses_pikas_public_methods_if_private_names_have_changed() -> None:
    """If pika's private names have changed, mqtool publishes and consumes with pika's public methods alone. To run all
    tests of tests/integration in this way, set MQTOOL_PIKA=public.
    """
    rename = """
    from pika.adapters.utils import io_services_utils
    from pika.connection import Connection

    io_services_utils.PlaintextTransport = io_services_utils._AsyncPlaintextTransport
    Connection.process_frame = Connection._process_frame
    Connection._process_frame = lambda self, frame, now=None: self.process_frame(frame)
    """
    public = """
    from mqtool.amqp.pika_private import FastConnection
    assert not issubclass(CONNECTION, FastConnection)
    """
    run(rename, USE, public)
