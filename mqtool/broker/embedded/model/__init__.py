"""What a broker is, without sockets, frames or files: virtual hosts, exchanges, queues, messages, users.

The lowest of the layers of `mqtool.broker.embedded`; beside itself it imports only `mqtool.routing`.
"""
