"""AMQP 1.0, on the same port as AMQP 0-9-1: frames, sessions and links, and how they map to the broker's model.

https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-complete-v1.0.pdf
"""
