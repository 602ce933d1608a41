"""The JavaScript modules of `mqtool ui` can be joined into one file, as recordings need."""

import base64
import re
from collections import Counter
from pathlib import Path

from mqtool.ui import page_server

SOURCES = {
    path.stem: path.read_text()
    for path in sorted(page_server._PAGE.glob("*.js"))  # the modules that are joined
}


def test_no_two_javascript_modules_of_the_page_declare_the_same_name() -> None:
    """`mqtool ui --record` writes all JavaScript modules of the page into one script, in which a name can be declared
    only once. No two modules therefore declare the same name at their top level.
    """
    declared = re.compile(
        r"^(?:export )?(?:async )?(?:function\*?|class|const|let|var) (\w+|\{[^}]*\}|\[[^\]]*\])", re.M
    )
    names = Counter(name for source in SOURCES.values() for name in declared.findall(source))
    assert len(names) > len(SOURCES)
    assert {name for name, count in names.items() if count > 1} == set()


def test_javascript_modules_can_be_joined_into_one_file() -> None:
    """`mqtool ui --record` removes the import lines and the word "export" from the page's JavaScript modules, and joins
    the modules into one script. To make this possible, each import is on one line and renames nothing, no module has a
    default export or a list of exports, and each module comes after those that it imports.
    """
    order = page_server._MODULES  # the modules that are joined
    assert sorted(order) == sorted(SOURCES)
    for name, source in SOURCES.items():
        for line in re.findall(r"^import.*", source, re.M):
            found = re.fullmatch(r'import \{ [\w, ]+ \} from "\./(\w+)\.js";', line)
            assert found, line
            assert " as " not in line
            assert order.index(found[1]) < order.index(name), line
        assert "export default" not in source
        assert not re.search(r"^export \{", source, re.M)


def test_a_recording_of_mqtool_ui_is_one_file() -> None:
    """A recording of `mqtool ui` is one HTML file that contains its styles, its code and its icon, and refers to no
    other file.
    """
    page = page_server.single_file([{"kind": "about", "t": 0, "title": "</script><link>"}]).decode()
    icon = base64.b64encode((page_server._PAGE / "icon.svg").read_bytes()).decode()
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == [f"data:image/svg+xml;base64,{icon}"]
    assert page.count("http-equiv") == page.count("<style>") == 1
    assert page.count("</script>") == page.count("<script") == 2


def test_the_documentation_has_the_icon_of_the_page() -> None:
    """The HTML documentation has the same icon as the page of `mqtool ui`."""
    docs = Path(__file__).parents[2] / "docs"
    (named,) = re.findall(r'^html_favicon = "(.*)"', (docs / "conf.py").read_text(), re.M)
    assert (docs / named).samefile(page_server._PAGE / "icon.svg")
    assert 'href="icon.svg"' in (page_server._PAGE / "index.html").read_text()
