"""`tutorial run --ui`, `tutorial try --ui` and `drill --ui`: the page shows each step, and keys control it."""

import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqtool.ui.page_server import single_file
from tests.brokers import large
from tests.cli.browser import Page
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.test_picture import box, of_terminal, play, recorded, seek
from tests.cli.test_tutorial import processes_with

pytestmark = large


@pytest.fixture
def playing(lonely_shell: Shell, chromium: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Running, Page]]:
    """A command with --ui, and its page. After the test, assert that nothing it started is left."""
    lonely_shell.environment["TUTORIAL_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    command = lonely_shell.start("mqtool", *request.param, "--ui", ready=False).wait_for_stdout("\n")
    yield command, Page(chromium, command.stdout.split("\n")[0])
    chromium.get("about:blank")
    wait_until(lambda: not processes_with(mark), "no process that the command has started")


def shown(page: Page, selector: str) -> str:
    """Return the text of an element of the page; "" if there is no such element."""
    return str(page.ask("const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", selector))


def terminals(page: Page) -> dict[str, list[str]]:
    """The lines in each terminal."""
    found = page.ask(
        "return [...document.querySelectorAll('.terminal')]"
        ".map(e => [e.querySelector('h3').innerText, e.querySelector('pre').textContent])"
    )
    return {name: text.splitlines() for name, text in found}


def go_on(page: Page, narration: str) -> None:
    """Wait for an explanation, and press the key to continue."""
    page.until(lambda: narration in shown(page, "#narration") and page.find("#next:enabled"), narration)
    page.press("n")


@pytest.mark.parametrize("playing", [("tutorial", "run")], ids=["tutorial run"], indirect=True)
def test_keys_step_through_a_tutorial_and_save_a_recording_of_it(playing: tuple[Running, Page], tmp_path: Path) -> None:
    """On the page of `tutorial run --ui`, a learner can use the keyboard alone to choose a tutorial and to step forward
    and back through its scenes. The key s saves a recording: an HTML page that replays the scenes without mqtool.
    """
    command, page = playing
    page.until(lambda: "Start: Hello World" in shown(page, "#next"), "the list, with the first one proposed")
    page.press("\ue007")
    page.until(lambda: shown(page, "#scene") == "Scene 1", "the first scene")
    assert "Send a message anyway" in shown(page, "#narration")
    assert terminals(page) == {"sender": [], "receiver": []}
    go_on(page, "Send a message anyway")
    page.until(lambda: page.dots() == [("ready", "q:hello")], "the message in its queue")
    go_on(page, "Now start a receiver")
    page.until(lambda: "consumer receiver" in page.nodes(), "the consumer, by its terminal's name")
    assert terminals(page)["sender"] == ["$ mqtool send 'Hello World!'", " [x] Sent 'Hello World!'"]
    go_on(page, "The receiver is waiting")
    page.until(lambda: "1 check passed" in shown(page, "#narration"), "the end")
    assert shown(page, "#checks").startswith("✓ the receiver got both messages")
    at_the_end = terminals(page)
    assert " [x] Received Good morning!" in at_the_end["receiver"]

    page.press("b")
    page.press("b")
    page.until(lambda: shown(page, "#scene").startswith("Scene 1, again"), "the first scene")
    assert "Send a message anyway" in shown(page, "#narration")
    page.until(lambda: page.dots() == [("ready", "q:hello")], "the message in its queue, again")
    assert terminals(page)["receiver"] == []
    for _ in range(2):
        page.press("n")
    page.until(lambda: terminals(page) == at_the_end, "the end again")
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.press("s")
    saved = tmp_path / "mqtool-ui.html"
    wait_until(saved.exists, "the saved recording")
    assert page.complaints() == []
    assert command.interrupt().wait().code == 0

    saved_page = Page(page.driver, saved.as_uri())
    saved_page.until(lambda: shown(saved_page, "#scene") == "Scene 1", "the first scene, without mqtool")
    for _ in range(6):
        saved_page.press("n")
    saved_page.until(lambda: terminals(saved_page) == at_the_end, "its end")
    assert saved_page.complaints() == []


@pytest.mark.parametrize("playing", [("drill", "duplicate", "-c", "20")], ids=["drill"], indirect=True)
def test_the_page_of_a_drill_explains_the_fault_and_shows_the_totals(playing: tuple[Running, Page]) -> None:
    """The page of `drill --ui` explains which fault the drill causes, and waits until a key is pressed. When the drill
    has ended, the page shows the totals, including the number of lost messages. The page fits on a narrow screen.
    """
    command, page = playing
    page.resize(390)
    go_on(page, "Every tenth of 20 messages is published twice")
    page.until(lambda: shown(page, "#counts"), "the count")
    rows = dict(line.split("\t") for line in shown(page, "#counts").splitlines()[1:])
    assert (rows["sent"], rows["confirmed"], rows["duplicates recognised"], rows["lost"]) == ("20", "22", "2", "0")
    page.until(
        lambda: shown(page, "#checks") == "✓ nothing lost: 20 sent = 20 done", "the check, which follows the count"
    )
    assert page.ask("return document.documentElement.scrollWidth <= innerWidth")
    ended = command.interrupt().wait()
    assert (ended.code, ended.stdout.splitlines()[1][:19]) == (0, "duplicate: sent 20,")


@pytest.mark.parametrize("playing", [("tutorial", "run", "hello-world")], ids=["tutorial run"], indirect=True)
def test_a_closed_page_does_not_end_a_tutorial(playing: tuple[Running, Page], chromium: Any) -> None:
    """If the page of `tutorial run --ui` is closed, the command asks the user to open it again, and continues. The page
    then shows the same scene. Ctrl-C stops the command and everything that the command has started.
    """
    command, page = playing
    go_on(page, "Send a message anyway")
    page.until(lambda: "Now start a receiver" in shown(page, "#narration"), "the second scene")
    chromium.get("about:blank")
    command.wait_for_stderr("The page is closed. Open it again")
    again = Page(chromium, page.url)
    again.until(lambda: "Now start a receiver" in shown(again, "#narration"), "the same scene")
    assert terminals(again)["sender"] == ["$ mqtool send 'Hello World!'", " [x] Sent 'Hello World!'"]
    ended = command.interrupt().wait()
    assert ended.code == 130
    assert "everything it started has been stopped" in ended.stderr


@pytest.mark.parametrize(
    "playing", [("tutorial", "try", "hello-world", "--again")], ids=["tutorial try"], indirect=True
)
def test_the_page_of_tutorial_try_shows_the_goal_and_the_learners_messages(
    playing: tuple[Running, Page], lonely_shell: Shell, tmp_path: Path
) -> None:
    """The page of `tutorial try --ui` shows the goal and the learner's messages. When the goal has been reached, the
    page says how the learner reached it.
    """
    command, page = playing
    page.until(lambda: "while no receiver is running" in shown(page, "#narration"), "the goal")
    command.wait_for_stdout("Goal 1 of 3")
    if found := re.search(r"export AMQP_URL=(\S+)", command.stdout):
        lonely_shell.environment["AMQP_URL"] = found[1]
    lonely_shell.run("mqtool", "send", "Hello World!")
    page.until(lambda: page.dots() == [("ready", "q:hello")], "the message in its queue")
    lonely_shell.run("mqtool", "receive", "-c", "1")
    page.until(lambda: "waited in the queue 'hello'" in shown(page, "#checks"), "the proof")
    page.until(lambda: "Now start the receiver first" in shown(page, "#narration"), "the next goal")
    assert command.interrupt().wait().code == 0


@pytest.mark.parametrize("playing", [("tutorial", "run", "hello-world")], ids=["tutorial run"], indirect=True)
def test_a_learners_actions_between_scenes_do_not_affect_the_tutorial(playing: tuple[Running, Page]) -> None:
    """If a learner publishes messages, consumes the tutorial's messages and declares queues between two scenes of a
    tutorial, the next scene still shows the same messages and queues as without these actions, and its checks pass.
    After the last scene, the learner can still publish.
    """
    command, page = playing
    go_on(page, "Send a message anyway")
    page.until(lambda: "Now start a receiver" in shown(page, "#narration"), "the second scene")
    page.until(lambda: page.find("#try:not([hidden])"), "the button")
    page.click("#try")
    page.until(lambda: page.find("#action option[value=publish]"), "the form")
    page.act("publish", exchange="", key="hello", body="of my own")
    page.until(lambda: page.dots() == [("ready", "q:hello")] * 2, "both messages")
    assert "publisher you" in page.nodes()
    page.act("consume", queue="hello", seconds="0")
    page.until(lambda: page.dots() == [], "no message")
    page.act("declare-queue", name="mine")
    page.until(lambda: "quorum queue mine" in page.nodes(), "the learner's queue")
    page.click("#next")
    page.until(lambda: "The receiver is waiting" in shown(page, "#narration"), "the third scene")
    page.until(lambda: " [x] Received Hello World!" in terminals(page)["receiver"], "the tutorial's message")
    assert terminals(page)["receiver"][:2] == ["$ mqtool receive", " [*] Waiting for messages. To exit press CTRL+C"]
    assert " [x] Received of my own" not in terminals(page)["receiver"]
    assert "quorum queue mine" not in page.nodes()
    page.act("cut", client="receiver")
    page.until(lambda: "cut" in shown(page, "#runs"), "the cut connection")
    page.click("#next")
    page.until(lambda: "1 check passed" in shown(page, "#narration"), "the end")
    page.act("publish", exchange="", key="hello", body="afterwards")
    page.until(lambda: page.dots() == [("ready", "q:hello")], "the message")
    assert page.complaints() == []
    assert command.interrupt().wait().code == 0


@pytest.mark.parametrize("playing", [("tutorial", "run", "work-queues")], ids=["tutorial run"], indirect=True)
def test_a_learner_cannot_disturb_a_scene(playing: tuple[Running, Page]) -> None:
    """While the commands of a tutorial's scene run, the page of `tutorial run --ui` refuses a learner's actions, such
    as publishing a message, and says why. The scene's checks pass.
    """
    command, page = playing
    page.until(lambda: "Two workers share a queue" in shown(page, "#narration") and page.find("#next:enabled"), "begin")
    page.press("d")
    page.fill_in("publish", exchange="", key="task_queue", body="mine")  # before the scene, which lasts seconds
    page.ask("document.querySelector('#next').click()")
    page.until(lambda: terminals(page).get("boss"), "the scene's commands")
    page.ask("document.querySelector('#run').click()")
    page.until(lambda: "the tutorial's own commands are running" in shown(page, "#runs"), "the refusal")
    page.until(lambda: "fair dispatch: worker" in shown(page, "#checks"), "the scene's check")
    assert command.interrupt().wait().code == 130


def many_plays() -> list[dict[str, Any]]:
    """The records of 20 tutorials. In each, every scene has a question and a long answer, and there is one check."""
    records = []
    offered = [("work-queues", "Work queues"), *((f"number-{n}", f"Tutorial number {n}") for n in range(2, 21))]
    for index, (name, title) in enumerate(offered):
        session, *others = play()
        for each in list(others):
            if each["kind"] == "begins":
                each.update(name=name, title=title)
            elif each["kind"] == "scene":
                each["question"] = "Which of the two workers gets the task, and what does the other one do meanwhile?"
                text = "Worker 1. It is the only one that is not busy: the other one is still at its first task."
                others.append({"t": each["t"] + 2_000, "kind": "answered", "n": 0, "text": text})
        session["plays"] = [{"name": name, "title": title, "story": "A story."} for name, title in offered]
        moved = others if index else [session, *others]
        records += [{**each, "t": each["t"] + index * 25_000} for each in sorted(moved, key=lambda each: each["t"])]
    numbers = itertools.count()
    return [{**each, "n": next(numbers)} if "n" in each else each for each in records]


def of_many_plays(chromium: Any, directory: Path, width: int) -> Page:
    """Open a recording of 20 tutorials, at the first of them."""
    file = directory / "recording.html"
    file.write_bytes(single_file(many_plays()))
    page = Page(chromium, f"{file.as_uri()}#work-queues")
    page.resize(width)
    page.until(lambda: page.find("#play-title") and shown(page, "#play-title") == "Work queues", "the tutorial")
    return page


def overlapping(page: Page, selectors: list[str]) -> list[tuple[str, str]]:
    """The pairs of these elements that are drawn over each other."""
    boxes = {selector: box(page, selector) for selector in selectors}
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2)
        if min(a["right"], b["right"]) - max(a["left"], b["left"]) > 1
        and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 1
    ]


@pytest.mark.parametrize("width", [1280, 768, 390], ids="{} pixels".format)
def test_the_picture_the_answers_and_the_list_of_tutorials_do_not_overlap(
    chromium: Any, tmp_path: Path, width: int
) -> None:
    """At window widths of 1280, 768 and 390 pixels, once a tutorial's picture has shown what happens in a scene, the
    answer to the scene's question is visible without scrolling. At the end, the page shows the answers, the list of
    tutorials and the picture without any overlap.
    """
    page = of_many_plays(chromium, tmp_path, width)
    seek(page, 0.5)
    assert shown(page, "#scene") == "Scene 2"
    latest = "#checks .answer:not(.earlier)"
    page.until(lambda: page.find(latest), "the answer of the scene")
    answer, controls = box(page, latest), box(page, "nav" if width > 800 else "#buttons")
    assert answer["bottom"] <= controls["top"]
    middle = (answer["left"] + 10, (answer["top"] + answer["bottom"]) / 2)
    assert page.ask("return document.elementFromPoint(...arguments).className", *middle) == "answer"
    assert not overlapping(page, ["#narration", "#question", "#checks", "#view"])
    seek(page, 1)
    page.until(lambda: page.find("#plays:not([hidden]) button"), "the list of tutorials")
    assert len(page.find("#plays button")) == 20
    parts = ["#narration", "#checks", "#plays", "#view", "#terminals", "#legend"]
    assert all(box(page, part)["height"] > 15 for part in parts[:-1]), "the legend is empty if no shape was seen"
    assert overlapping(page, parts) == []
    assert page.ask("return document.documentElement.scrollWidth <= innerWidth")
    if width == 1280:
        assert page.ask("const main = document.querySelector('main'); return main.scrollHeight <= main.clientHeight")
    where, header = box(page, "#where"), box(page, "header")
    assert "of" in shown(page, "#where")
    assert where["right"] <= header["right"]


@pytest.mark.parametrize("width", [1280, 768, 390], ids="{} pixels".format)
def test_the_picture_keeps_its_place_however_long_the_text_of_a_scene_is(
    chromium: Any, tmp_path: Path, width: int
) -> None:
    """At window widths of 1280, 768 and 390 pixels, the picture of a tutorial is in the same place in a scene with a
    long text and a question as in a scene with a short text.
    """
    records = play()
    scenes = [each for each in records if each["kind"] == "scene"]
    scenes[0].update(
        text=f"{scenes[0]['text']} The boss sends a long task.", question="Which worker gets the next one?"
    )
    file = tmp_path / "recording.html"
    file.write_bytes(single_file(records))
    page = Page(chromium, file.as_uri())
    page.resize(width)
    found = []
    for part in (0.2, 0.6):
        seek(page, part)
        found.append((shown(page, "#scene"), box(page, "#view")["top"]))
    assert [scene for scene, _ in found] == ["Scene 1", "Scene 2"]
    assert found[0][1] == found[1][1]


def test_the_answer_of_a_scene_with_a_long_text_is_not_cut(chromium: Any, tmp_path: Path) -> None:
    """When the commands of a tutorial's scene have run, the tutorial's page shows the answer to the scene's question,
    and the result of checking what the commands did. On a wide screen, it shows both in full, even if the scene's text
    is long.
    """
    records = play()
    scene = next(each for each in records if each["kind"] == "scene")
    scene["text"] = " ".join([scene["text"]] * 2)
    ends = next(each for each in records if each["kind"] == "ends")
    text = "None. While it works on the long task, it gets no other task. The other worker does all five quick tasks."
    answered = {"t": 5000, "kind": "answered", "n": 90, "text": text}
    checked = {
        "t": 5000,
        "kind": "checked",
        "n": 91,
        "what": "worker 1 did the long task, worker 2 the others",
        "ok": True,
    }
    at = next(index for index, each in enumerate(records) if each["t"] > 5000)
    records[at:at] = [answered, checked]
    numbers = itertools.count()
    assert ends["n"] < 90
    file = tmp_path / "recording.html"
    file.write_bytes(single_file({**each, "n": next(numbers)} if "n" in each else each for each in records))
    page = Page(chromium, file.as_uri())
    seek(page, 0.05)
    assert "Workers share tasks" in shown(page, "#summary")
    seek(page, 0.27)
    page.until(lambda: len(page.find("#checks li")) == 2, "the answer and the check")
    assert shown(page, "#scene") == "Scene 1"
    checks, answer, check = (box(page, f"#checks{each}") for each in ("", " .answer", " .passed"))
    assert checks["top"] <= answer["top"]
    assert check["bottom"] <= checks["bottom"]


def test_the_list_of_tutorials_leaves_room_for_the_whole_picture(chromium: Any, tmp_path: Path) -> None:
    """At the end of a tutorial, in a window of 1280×800 pixels, the page shows a list of tutorials. The list leaves
    enough room for a whole picture with three queues, and does not hide the latest lines of the terminals.
    """
    records = many_plays()
    for topology in (each for each in records if each["kind"] == "topology"):
        (queue,) = topology["queues"]
        topology["queues"] += [{**queue, "name": name} for name in ("mail", "stock")]
    lines = [{"t": 9000, "n": 0, "kind": "printed", "terminal": "boss", "line": f"line {n}"} for n in range(9)]
    at = next(index for index, each in enumerate(records) if each["t"] > 9000)
    records[at:at] = lines
    numbers = itertools.count()
    file = tmp_path / "recording.html"
    file.write_bytes(single_file({**each, "n": next(numbers)} if "n" in each else each for each in records))
    page = Page(chromium, f"{file.as_uri()}#work-queues")
    size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.until(lambda: page.find("#play-title") and shown(page, "#play-title") == "Work queues", "the tutorial")
    seek(page, 1)
    page.until(lambda: page.find("#plays:not([hidden]) button"), "the list of tutorials")
    seek(page, 1)
    assert page.ask("const e = document.querySelector('#frame'); return e.scrollHeight - e.clientHeight") <= 0
    below = "const pre = document.querySelector('.terminal pre'); return pre.scrollHeight - pre.clientHeight"
    assert page.ask(below) > 0
    assert page.ask(f"{below} - pre.scrollTop") < 2, "the latest line is visible"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (768, 1024), (390, 844)])
def test_no_line_of_a_scrolled_terminal_is_cut(chromium: Any, tmp_path: Path, width: int, height: int) -> None:
    """In windows from 390×844 to 1920×1080 pixels, a terminal of a tutorial that has more lines than fit shows only
    whole lines after it has scrolled: the first line below the terminal's name is not cut off.
    """
    printed = [{**of_terminal(150, 100 + line, "printed"), "line": f" [x] Received {line}"} for line in range(40)]
    page = recorded(chromium, tmp_path, sorted([*play(), *printed], key=lambda each: each["t"]))
    seek(page, 0.2)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    lines = page.driver.execute_async_script(
        """
        const done = arguments[0], pre = document.querySelector(".terminal pre"), range = document.createRange();
        range.selectNodeContents(pre);
        pre.scrollTop = pre.scrollHeight;
        requestAnimationFrame(() => {
          const { top, bottom } = pre.getBoundingClientRect();
          const lines = [...range.getClientRects()].filter((line) => line.height && line.bottom > top + 2);
          done({ scrolled: pre.scrollTop, cut: lines.filter((line) => line.top < top - 2).length,
            whole: lines.filter((line) => line.top >= top - 2 && line.bottom < bottom).length });
        });
        """
    )
    assert lines["scrolled"] > 0
    assert lines["cut"] == 0
    assert lines["whole"] >= 4


def test_the_page_scrolls_to_the_top_when_another_tutorial_is_chosen(chromium: Any, tmp_path: Path) -> None:
    """A page can play the recordings of several tutorials. If a viewer with a phone has scrolled down and then
    chooses another tutorial, the page scrolls back to the top.
    """
    page = of_many_plays(chromium, tmp_path, 390)
    page.ask("document.querySelector('main').scrollTop = 100")
    assert page.ask("return document.querySelector('main').scrollTop") == 100
    page.ask("location.hash = 'number-2'")
    page.until(lambda: shown(page, "#play-title") == "Tutorial number 2", "the other tutorial")
    assert page.ask("return document.querySelector('main').scrollTop") == 0
