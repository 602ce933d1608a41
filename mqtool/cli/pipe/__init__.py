"""What goes in, and what became of it."""
