"""The commands. Each defines its options, calls a function of another package and prints the result."""
