"""What a broker holds and what it means: lists, routes, wiring, and findings."""
