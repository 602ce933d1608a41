"""The management HTTP API, as far as tools need it."""
