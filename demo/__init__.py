"""`make demo` sends a real log file through a topic exchange; other modules make the pictures of the documentation."""

from pathlib import Path

#: Where receivers write; relative, as it is typed.
OUTPUT = Path("demo-output")
