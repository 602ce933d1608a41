"""The environment of plays and drills: terminals, checks, measurements, and a proxy whose connections can be cut."""
