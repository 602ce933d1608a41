"""A demonstration, which sends a real log file through a topic exchange (`make demo-real-log`), and the programs that
make the pictures for the documentation.
"""

from pathlib import Path

#: Where receivers write; relative, as it is typed.
OUTPUT = Path("demo-output")
