"""Benchmarks of mqtool beside other programs, measured in the same run: machines differ, so compare the ratios."""
