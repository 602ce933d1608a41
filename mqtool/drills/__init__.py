"""Drills: start commands on a broker, cause a failure, and count lost and duplicated messages."""
