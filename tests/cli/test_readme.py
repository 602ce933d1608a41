"""The README's first commands, on a machine that has Python but not mqtool."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mqtool.broker import ports
from tests.brokers import large
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal

_ROOT = Path(__file__).parents[2]
_PROMPT = "ready> "


def _clone(to: Path) -> None:
    """Copy the files that git tracks, as a clone would, with changes that are not committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        if (_ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, to / name)


@large
@pytest.mark.parametrize("interactive", ["bash --norc -i", "zsh -f -i"])
@pytest.mark.timeout(900)
def test_the_readmes_first_commands_can_be_pasted_where_only_python_is_installed(
    lonely_shell: Shell, tmp_path: Path, interactive: str
) -> None:
    """On a machine that has only Python, the README's first commands can be pasted into bash or zsh in order: they
    install mqtool, and then send and receive messages.
    """
    if shutil.which(interactive.split()[0]) is None:
        pytest.skip(f"{interactive.split()[0]} is not installed")
    with socket.socket() as probe:
        is_used = not probe.connect_ex((ports.HOST, ports.AMQP))
    if is_used:
        pytest.skip("a broker that this test did not start listens on port 5672")
    begin = (_ROOT / "README.md").read_text().partition("## Begin")[2].partition("## Install")[0]
    blocks = re.findall(r"```(?:ba)?sh\n(.*?)```", begin, re.DOTALL)
    assert blocks[0].startswith("python3 -m venv")
    _clone(tmp_path / "mqtool")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.base_prefix, "bin", "python3"))
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    pip.setdefault("PIP_CONFIG_FILE", str(Path.home() / ".config/pip/pip.conf"))  # names the package index
    shell = Shell(tmp_path / "mqtool", {"PS1": _PROMPT, **pip})
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        shell.environment.pop(name, None)
    shell.environment |= {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin"}
    pasted = "".join([*blocks, "mqtool broker down\n", "exit\n"])
    shown = on_terminal(shell, *interactive.split(), keys=[pasted], cue=_PROMPT).stdout.replace("\r", "")
    for line in (
        " [x] Sent 'Hello World!'",
        " [x] Received Hello World!",
        "1,000 confirmed",
        "\n1\n2\n3\n",
        "stopped ",
    ):
        assert line in shown, shown
    for problem in ("not found", "rror", "o such file"):
        assert problem not in shown, shown
