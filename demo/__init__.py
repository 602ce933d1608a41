"""The demonstration: every tutorial's commands, played as in several terminals, and checked.

Each tutorial has a file here that reads like the script of a play: which terminals there are, what is typed in them,
and what must have come of it. `python -m demo` plays all of them, `python -m demo routing` one.
"""
