"""Support for tests with an embedded broker: queries about its messages, fault injection, and a test CA for TLS.

A broker imports this package only when it is under test, and calls it only through `Broker.hooks`.
"""
