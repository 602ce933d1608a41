"""Benchmarks. Most run mqtool and a comparable program alternately: machines differ, so compare ratios, not times."""
