"""What `make demo` shows besides the tutorials: a real log file through a topic exchange. And the docs' pictures."""

from pathlib import Path

#: Where receivers write; a path to type, so it is relative.
OUTPUT = Path("demo-output")
