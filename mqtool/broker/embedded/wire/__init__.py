"""AMQP 0-9-1: decodes frames and methods, carries out the methods, and encodes the replies.

Imports `model` and `sockets`, never `store` or `http`.
"""
