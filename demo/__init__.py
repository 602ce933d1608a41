"""What `make demo` shows besides the tutorials: a real log file in a topic exchange. And the docs' pictures."""

from pathlib import Path

#: Where receivers write; relative, as it is typed.
OUTPUT = Path("demo-output")
