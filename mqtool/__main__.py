"""Entry point of `python -m mqtool` and of the console script."""

import sys

if sys.platform == "win32":
    # The command line needs POSIX (signals, fcntl, termios): docs/how-to/installing.md lists its uses.
    sys.exit(
        "mqtool: the command line does not run on Windows\n"
        "hint: install it in WSL (the Windows Subsystem for Linux), or run it in a container"
    )

from mqtool.cli.app import run as main

if __name__ == "__main__":
    main()
