"""Encodings of header values, for client and broker: the field tables of AMQP 0-9-1, and the values of AMQP 1.0."""
