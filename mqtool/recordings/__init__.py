"""Recordings: NDJSON files from `receive --json` or `tap --json`. `replay` publishes them, `scrub` changes values."""
