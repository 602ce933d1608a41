"""Copies of what passes through a broker, from a private queue bound beside the others; nothing is taken."""
