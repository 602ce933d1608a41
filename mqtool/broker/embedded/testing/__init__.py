"""Questions that tests ask an embedded broker, and faults that they make happen to it.

A broker that is not tested imports none of this: the broker calls it only by `Broker.hooks`.
"""
