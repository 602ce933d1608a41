"""One file for each group of commands: its options, one call, and a renderer."""
