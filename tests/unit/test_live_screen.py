"""Live views: their keys, and what they show while the broker is unreachable."""

import io
import re
import threading

from rich.console import Console
from rich.text import Text

from mqtool.cli.display.live_screen import Frame, Live
from mqtool.errors import Unavailable
from tests.cli.shell import wait_until


def shown(live: Live) -> str:
    console = Console(file=io.StringIO(), width=60, height=10, color_system=None)
    console.print(live._picture(console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_a_live_view_keeps_its_rows_while_the_broker_is_unreachable() -> None:
    """While the broker is unreachable, a live view, such as `top`, shows the last rows, their age, and the reason why
    the broker is unreachable. After a reconnection, the view shows new rows, without the reason.
    """
    answers = [Frame(Text("jobs 12")), Unavailable("no broker at localhost:5672"), Frame(Text("jobs 13"))]
    is_asked, may_answer, stop = threading.Event(), threading.Semaphore(0), threading.Event()

    def fetch(_height: int, _wanted: str) -> Frame:
        is_asked.set()
        may_answer.acquire()
        answer = answers.pop(0)
        if not answers:
            stop.set()
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    live = Live(fetch, 0.0)
    thread = threading.Thread(target=live._fetch_until, args=(stop,))
    thread.start()
    for _ in range(2):
        may_answer.release()
        is_asked.wait()
    with live._changed:
        assert live._changed.wait_for(lambda: live._problem is not None, 10)
    assert re.search(r"reconnecting; this is \d+ s old: no broker at localhost:5672", shown(live))
    assert "jobs 12" in shown(live)
    may_answer.release()
    thread.join(10)
    assert "jobs 13" in shown(live)
    assert "reconnecting" not in shown(live)


def test_a_live_view_can_be_filtered_scrolled_and_quit_with_keys() -> None:
    """In a live view, such as `top`, there are keys to edit and clear the filter, to scroll to either end, to show the
    list of keys, and to quit.
    """
    wanted: list[str] = []

    def fetch(_height: int, text: str) -> Frame:
        wanted.append(text)
        return Frame(Text("\n".join(f"line {number}" for number in range(100))))

    live, stop = Live(fetch, 0.0), threading.Event()
    thread = threading.Thread(target=live._fetch_until, args=(stop,), daemon=True)
    thread.start()
    try:
        assert not live._obey("/jobs\x15line")
        assert "/line_" in shown(live)
        assert not live._obey("\r")
        wait_until(lambda: "line" in wanted, "the rows to be requested with the filter")
        assert not live._obey("\x1b")
        assert "/line" not in shown(live)
        assert not live._obey("\x1b[F")
        assert "line 99" in shown(live)
        assert not live._obey("\x1b[H")
        assert "line 0\n" in shown(live).replace(" \n", "\n") or "line 0 " in shown(live)
        assert not live._obey("?")
        assert "Ctrl-U" in shown(live)
        assert live._obey("q")
    finally:
        stop.set()


def test_the_key_help_of_a_live_view_lists_all_keys_of_the_view() -> None:
    """The last line of a live view names as many of the view's keys as fit on the terminal. The help that the key ?
    opens names all of them.
    """
    keys = "  ".join(f"{number} column-{number}" for number in range(30))
    live = Live(lambda _height, _wanted: Frame(Text("row"), keys=keys), 0.0)
    live._keep(live._fetch(10, ""))
    assert "column-29" not in shown(live)
    assert not live._obey("?\x1b[F")
    assert "column-29" in shown(live)


def test_control_characters_in_names_are_escaped_in_a_live_view() -> None:
    """A live view, such as `top`, escapes control characters and invisible characters in the names that the broker
    reports.
    """
    live = Live(lambda _height, _wanted: Frame(Text("\x1b]0;owned \x9b \u202e")), 0.0)
    live._keep(live._fetch(10, ""))
    assert r"\x1b]0;owned \x9b \u202e" in shown(live)
