"""Message input and output of commands: reading, publishing, receiving, tapping and replaying."""
