"""The pages of `mqtool` and `mqtool --help`."""

from importlib import resources

_HERE = resources.files("mqtool.cli.help")


def overview() -> str:
    """Return the page that `mqtool --help` prints: all commands by heading, and the topics."""
    return _HERE.joinpath("overview.txt").read_text("utf-8").rstrip()


def start_page() -> str:
    """Return the page that `mqtool` prints without arguments: how to get started."""
    return _HERE.joinpath("start.txt").read_text("utf-8").rstrip()
