"""The part of `make demo` that is not a tutorial: a real log file through a topic exchange. And the docs' pictures."""

from pathlib import Path

#: Where receivers write; relative, as it is typed.
OUTPUT = Path("demo-output")
