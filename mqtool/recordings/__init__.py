"""Recordings: files of NDJSON that `receive --json` or `tap --json` wrote, to play again and to make fit to share."""
