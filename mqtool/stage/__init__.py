"""Run commands for `tutorial run` and `drill`: terminals, checks, measurements, and a proxy."""
