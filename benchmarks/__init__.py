"""Benchmarks that run mqtool and comparable programs alternately. Machines differ, so compare ratios, not times."""
