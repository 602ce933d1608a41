"""How an exchange chooses queues: topic and header matching, and the values they compare: field tables, AMQP 1.0's.

Shared by the embedded broker, the client of streams and `mqtool route`; imports nothing else of mqtool.
"""
