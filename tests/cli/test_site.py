"""The documentation's site, typed as printed: every page on one broker, in the order of the contents, twice."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.brokers import large, weekly
from tests.cli.shell import Shell
from tests.cli.test_documentation import ROOT, SECTIONS, TUTORIALS, assert_shown, blocks_of, paste, type_in_terminals
from tests.protocol.broker_process import BrokerProcess

README = ROOT / "README.md"


def site() -> list[Path]:
    """The pages with commands, in the order of the site: the README, then the table of contents of docs/index.md."""
    docs = ROOT / "docs"
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (docs / "index.md").read_text(), re.DOTALL | re.MULTILINE)
    names = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = [README, *(docs / f"{name}.md" for name in names)]
    return [page for page in pages if "```sh\n" in page.read_text()]


@weekly
@large
@pytest.mark.timeout(1500)
def test_every_command_on_the_site_can_be_typed_twice_on_one_broker(lonely_shell: Shell, tmp_path: Path) -> None:
    """The commands on all pages of the documentation's site can be typed twice on the same broker. Both times, they
    print what the pages show, with two exceptions: the output of the tutorials' commands is not compared, and the
    output of the README's commands is compared only the first time.
    """
    (tmp_path / "broker").mkdir()
    (tmp_path / "typed").mkdir()
    lonely_shell.directory = tmp_path / "typed"
    lonely_shell.environment |= {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    with BrokerProcess(tmp_path / "broker", "--in-memory", "--management-port=0", "--stream-port=0") as broker:
        lonely_shell.environment |= {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        lonely_shell.environment["MQTOOL_STREAM_PORT"] = str(urlsplit(broker.stream_url).port)
        for turn in (1, 2):
            for page in site():
                print(f"turn {turn}: {page.name}")
                if page == TUTORIALS:
                    for section in SECTIONS:
                        type_in_terminals(lonely_shell, section)
                    continue
                blocks = blocks_of(page.read_text())
                printed = paste(lonely_shell, [typed for typed, _ in blocks])
                if turn == 1 or page != README:
                    assert_shown(blocks, printed)
