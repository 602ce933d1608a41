"""Message input and output of commands: reading, publishing, receiving and tapping."""
