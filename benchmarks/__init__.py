"""Measurements beside peers in the same run. Machines differ and are noisy: read the ratios."""
