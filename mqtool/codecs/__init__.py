"""Encodings of header values: the field tables of AMQP 0-9-1, and the values of AMQP 1.0. Used by client and broker."""
