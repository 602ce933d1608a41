"""What outlives the process: the ledger, its SQLite file, and how a broker is made of it again."""
