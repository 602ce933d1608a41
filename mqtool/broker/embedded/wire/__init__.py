"""AMQP 0-9-1: from octets to frames to methods, what each method does, and back.

Imports `model`; never `store` or `http`.
"""
