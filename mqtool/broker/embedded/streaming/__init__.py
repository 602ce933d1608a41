"""The stream protocol: decodes frames, carries out the commands, and encodes the responses.

Imports `model` and `sockets`, never `wire`. A broker without a stream port does not import this package.
"""
