"""Runs a command on its own terminal, of 24 lines and 80 or fewer columns, and types keys."""

import json
import sys
from collections.abc import Sequence

from tests.cli.shell import Result, Shell

_PLAY = """
import fcntl, json, os, pty, struct, sys, termios
keys, cue = json.loads(sys.argv[1]), sys.argv[2].encode()
child, terminal = pty.fork()
if not child:
    os.environ["TERM"] = "xterm"
    del os.environ["COLUMNS"]
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[3]), 0, 0))
    os.execvp(sys.argv[4], sys.argv[4:])
seen, answered = b"", 0
while True:
    try:
        data = os.read(terminal, 65536)
    except OSError:
        break
    if not data:
        break
    seen += data
    if keys and seen.count(cue) > answered:
        answered = seen.count(cue)
        os.write(terminal, keys.pop(0).encode())
sys.stdout.buffer.write(seen)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def on_terminal(shell: Shell, *command: str, keys: Sequence[str] = (), cue: str = "", columns: int = 80) -> Result:
    """Run a command on a terminal until it ends. The result's stdout is everything that the terminal showed.

    Args:
        keys: the keys to type, each after the cue has appeared once more.
    """
    return shell.run(sys.executable, "-IS", "-c", _PLAY, json.dumps(list(keys)), cue, str(columns), *command)
