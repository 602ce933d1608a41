"""Measures a broker with publisher and consumer processes that record latencies and count every message."""
