"""Storage of durable definitions, messages and streams in a data directory, and recovery of a broker from it.

This package may import `model`, but never `wire` or `http`.
"""
