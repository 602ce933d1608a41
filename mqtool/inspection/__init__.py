"""Inspect a broker: list its objects, explain routes, show its topology, and find problems."""
