"""Terminals, checks and faults: what plays and drills perform on."""
