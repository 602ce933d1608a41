"""Brokers: find one that runs, or start one."""
