"""What plays and drills perform on: terminals, checks, and a proxy to break."""
