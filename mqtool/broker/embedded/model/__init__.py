"""The broker's model: virtual hosts, exchanges, queues, messages and users, without sockets, frames or files.

The lowest layer of `mqtool.broker.embedded`: it imports none of the others.
"""
