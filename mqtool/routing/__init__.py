"""How an exchange chooses queues: topic and header matching, and the field tables they compare."""
