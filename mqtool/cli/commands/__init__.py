"""The commands. Each takes its options, calls a function of another package, and prints the result."""
