"""From bytes to methods and back: frames, connections, channels."""
