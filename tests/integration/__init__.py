"""mqtool's client on a broker. With MQTOOL_PIKA=public, on pika's public methods alone."""

import pytest

from mqtool.amqp.pika_private import CONNECTION, FastConnection

fast_path = pytest.mark.skipif(CONNECTION is not FastConnection, reason="pika's own codec, and slower")
