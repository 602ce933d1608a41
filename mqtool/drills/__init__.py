"""Drills: set a scene on a broker, break it, and see what became of the messages."""
