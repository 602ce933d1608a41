"""Drills: run commands against a broker, cause a failure, and count lost and duplicated messages."""
