"""Entry point of `python -m mqtool` and of the console script."""

import signal
import sys

if sys.platform == "win32":
    # The command line needs POSIX (signals, fcntl, termios): docs/how-to/installing.md lists its uses.
    sys.exit(
        "mqtool: the command line does not run on Windows\n"
        "hint: install it in WSL (the Windows Subsystem for Linux), or run it in a container"
    )


def main() -> None:
    """Run mqtool on the process's arguments and exit.

    While Python still imports mqtool, Ctrl-C ends the process as it ends any program: without a traceback. SIGHUP from
    logrotate does not end a command with --output: the signal stays blocked until the command has opened its file.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # run() installs a handler of its own
    writes_file = any(word.startswith(("-o", "--output")) for word in sys.argv[1:])
    if writes_file:  # or a word only looks like the option: then the command unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from mqtool.cli.app import run  # takes most of the time until the command starts

    run()


if __name__ == "__main__":
    main()
