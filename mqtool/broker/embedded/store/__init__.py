"""Durable queues and messages on disk: the ledger's SQLite file, and how a broker is rebuilt from it.

Imports `model`; never `wire` or `http`.
"""
