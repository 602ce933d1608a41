"""Workers, which run a program for each message; retries, dead-lettering, deduplication, peeking, moving messages."""
