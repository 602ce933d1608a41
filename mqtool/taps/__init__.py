"""`mqtool tap`: copies of messages from a private queue bound to the same exchanges. Other queues lose nothing."""
