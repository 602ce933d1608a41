"""What a test asks of an embedded broker, and does to it. Nothing of this is imported by a broker nobody tests with.

It sees `wire/` and `model/`, and they know of it only what the protocol `Hooks` in `model/broker.py` says.
"""
