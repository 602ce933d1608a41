"""Support for tests that use an embedded broker: queries about its messages, fault injection and a test CA for TLS.

A broker that is not under test does not import this package; the broker calls it only through `Broker.hooks`.
"""
