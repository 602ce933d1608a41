"""Measure a broker: publisher and consumer processes, latency from the intended time, and a count of every message."""
