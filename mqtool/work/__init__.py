"""Workers that run programs for messages, retries, dead-lettering, deduplication, peeking, and moving messages."""
