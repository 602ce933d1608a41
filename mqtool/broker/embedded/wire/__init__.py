"""AMQP 0-9-1: decodes frames and methods, carries the methods out, and encodes the answers.

Imports `model` and `sockets`, never `store` or `http`.
"""
