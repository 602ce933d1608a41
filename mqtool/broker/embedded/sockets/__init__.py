"""Socket handling for all protocols of the embedded broker: listeners, TLS, flow control, heartbeats and timeouts."""
