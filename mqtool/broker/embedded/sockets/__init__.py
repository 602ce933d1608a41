"""Sockets of the embedded broker, for all protocols: listeners, TLS, flow control, heartbeats and timeouts."""

import sys

if sys.platform == "win32":
    raise ImportError("the embedded broker does not run on Windows: use WSL or a container")
