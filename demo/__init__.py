"""The demonstration: every tutorial is played and checked, and then a real log file goes through a topic exchange.

`python -m demo` plays all of it, `python -m demo routing` a part. The plays are those of `mqtool tutorial run`.
"""

from pathlib import Path

#: Where receivers write; a path to type, so it is relative.
OUTPUT = Path("demo-output")
