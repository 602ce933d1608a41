"""Tests of mqtool's client with a broker. With MQTOOL_PIKA=public, the client uses only pika's public methods."""

import pytest

from mqtool.amqp.pika_private import CONNECTION, FastConnection

fast_path = pytest.mark.skipif(CONNECTION is not FastConnection, reason="pika's own codec is slower")
