"""The stream protocol: decodes its frames, carries the commands out, and encodes the answers.

Imports `model` and `sockets`, never `wire`. It is imported only by brokers with a stream port.
"""
