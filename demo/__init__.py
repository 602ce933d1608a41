"""A demonstration, which sends a real log file through a topic exchange (`make demo-real-log`), and the programs that
make the pictures for the documentation.
"""

from pathlib import Path

#: The directory to which receivers write: a relative path, as in the commands.
OUTPUT = Path("demo-output")
