"""The part of RabbitMQ's management HTTP API that tools need.

Imports `wire` (for the connections it shows) and `model`; never `store`. Only `server` imports this package.
"""
