"""What `tutorial run` and `drill` run commands with: terminals, checks, measurements, and a proxy."""
