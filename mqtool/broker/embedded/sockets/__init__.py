"""What all protocols of the embedded broker need of a socket: listening, TLS, pacing, heartbeats and deadlines."""
