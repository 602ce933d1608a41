"""The names that tests in Python may import to use the embedded broker.

The pytest fixtures `amqp_broker`, `amqp_vhost` and `amqp_tls` need no import. Import their types for annotations:

    from mqtool.testing import Vhost

    def test_something(amqp_vhost: Vhost) -> None: ...
"""

from mqtool.broker.embedded.in_process import EmbeddedBroker, Vhost
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.embedded.sockets.listener import Tls
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.broker.embedded.testing.questions import BegunFault, Faults, QueueQuestions
from mqtool.broker.embedded.testing.replay import replay
from mqtool.broker.embedded.testing.traffic import Messages, Recorded
from mqtool.errors import BadData, MqtoolError, Unavailable

__all__ = [
    "Authority",
    "BadData",
    "BegunFault",
    "EmbeddedBroker",
    "Faults",
    "Messages",
    "MqtoolError",
    "QueueQuestions",
    "Recorded",
    "Settings",
    "Tls",
    "Unavailable",
    "Vhost",
    "replay",
]
