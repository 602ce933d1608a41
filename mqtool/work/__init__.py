"""Programs as workers: what runs them, what becomes of a message that fails, and what was handled before."""
