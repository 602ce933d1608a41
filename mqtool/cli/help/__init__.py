"""The help: the commands as data (description), as lines for a terminal (page), and topics to read."""
