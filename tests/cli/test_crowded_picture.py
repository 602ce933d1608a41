"""The picture of `mqtool ui` with many queues: groups, zoom, labels, Find, and the queues of other users."""

import itertools
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import pictures
from tests.cli.browser import Page
from tests.cli.test_picture import OVERLAPPING, differences, jobs, message, play, recorded, seek

# A sample of the widths and of the tutorials: the weekly run has all of them.
pytestmark = [pictures, pytest.mark.sampled(2)]


def shop(count: int) -> list[dict[str, Any]]:
    """The records of a broker with queues orders-0, orders-1, …; two messages wait in each of the first three. The
    queue audit has three binding keys, and jobs has three wait queues.
    """
    records = jobs()
    topology = next(each for each in records if each["kind"] == "topology")
    (queue,) = topology["queues"]
    names = [f"orders-{number}" for number in range(count)]
    others = ["audit", *(f"jobs.wait.{delay}" for delay in ("1s", "10s", "5m"))]
    topology["queues"] += [{**queue, "name": name} for name in [*names, *others]]
    topology["exchanges"].append({"name": "shop", "type": "topic", "alternate": None})
    keys = {name: [f"order.{number}"] for number, name in enumerate(names)}
    keys["audit"] = ["kern.*", "*.critical", "order.*.paid.immediately"]
    topology["links"] = [
        {"from": "shop", "to": name, "toExchange": False, "keys": each, "more": 0} for name, each in keys.items()
    ]
    topology["consumers"] = [
        {"queue": name, "name": f"{name}/tag", "label": f"packer {number}", "prefetch": 1, "isAutomatic": False}
        for number, name in enumerate(names[:3])
    ]
    for number in range(6):
        name = f"orders-{number % 3}"
        event = {"kind": "event", "t": 1000 + number, "message": number}
        details = {**message(number, f"order of {number} shoes"), "exchange": "shop", "routing_key": f"order.{number}"}
        details["headers"] = {"colour": "teal"} if number == 4 else {}
        records += [
            {**event, "what": "published", "from": {"client": "till"}, "paths": [["shop", name]], "details": details},
            {**event, "what": "ready", "queue": name, "copy": number},
        ]
    return [*records, {"kind": "now", "t": 9000}]


def group_of(page: Page, what: str) -> str | None:
    """Return the line of a group in the picture; None if it is not drawn."""
    return page.nodes().get(what)


ORDERS = "group of 75 queues orders-…"


def test_similar_queues_are_drawn_as_one_group_that_can_be_expanded(chromium: Any, tmp_path: Path) -> None:
    """The picture of `mqtool ui` draws queues whose names differ only in a number as one group, with the total numbers
    of ready and unacknowledged messages. It groups the wait queues of a queue, and the consumers of a group of queues,
    in the same way. A click or Enter expands a group, and a button collapses it again. The key g expands or collapses
    all groups.
    """
    page = recorded(chromium, tmp_path, shop(75))
    page.until(lambda: group_of(page, ORDERS) == "0 ready · 0 unacked", "the group")
    assert group_of(page, "group of 3 queues jobs.wait.…") == "0 ready · 0 unacked"
    assert group_of(page, "group of 3 consumers consumers") == "prefetch 1"
    page.until(lambda: len(page.nodes()) == 7, "the groups and nothing else")
    for step in range(30):
        seek(page, step / 30)
        assert differences(page) == [], step
    seek(page, 1)
    page.until(lambda: group_of(page, ORDERS) == "6 ready · 0 unacked", "the sums")
    assert len(page.dots()) == 6
    assert page.find('.arrow.binding[data-from="x:shop"][data-to="q:*orders-… quorum"]')

    page.ask("document.querySelector(arguments[0]).focus()", '.node[data-name="orders-…"]')
    page.press("\ue007")
    page.until(lambda: "quorum queue orders-74" in page.nodes(), "its members")
    page.until(lambda: page.ask("return document.activeElement.dataset.name") == "orders-0", "the first, in focus")
    assert page.nodes()["quorum queue orders-1"] == "2 ready · 0 unacked"
    page.until(lambda: page.find("#unfolded button"), "the button")
    page.find("#unfolded button")[0].click()
    page.until(lambda: group_of(page, ORDERS) == "6 ready · 0 unacked", "the group again")
    page.until(lambda: page.ask("return document.activeElement.dataset.name") == "orders-…", "the group, in focus")
    page.press("g")
    page.until(lambda: "quorum queue jobs.wait.5m" in page.nodes() and group_of(page, ORDERS) is None, "no groups")
    page.press("g")
    page.until(lambda: group_of(page, ORDERS) is not None, "the group")
    page.find('.node[data-name="orders-…"]')[0].click()
    page.until(lambda: "consumer packer 2" in page.nodes(), "the consumers of its members")
    assert page.complaints() == []


def logs(keys: Iterable[list[str]]) -> list[dict[str, Any]]:
    """The records of a play in which consumers' queues are bound to a topic exchange with these keys."""
    records = [each for each in play() if each["kind"] not in ("event", "moved")]
    for topology in (each for each in records if each["kind"] == "topology"):
        (queue,) = topology["queues"]
        names = {f"amq.gen-{number}": each for number, each in enumerate(keys)}
        topology["queues"] = [{**queue, "name": name} for name in names]
        topology["exchanges"].append({"name": "topic_logs", "type": "topic", "alternate": None})
        topology["links"] = [
            {"from": "topic_logs", "to": name, "toExchange": False, "keys": each, "more": 0}
            for name, each in names.items()
        ]
        topology["consumers"] = [
            {"queue": name, "name": f"{name}/tag", "label": name, "prefetch": 0, "isAutomatic": False} for name in names
        ]
    return records


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_no_arrow_crosses_the_binding_keys_of_another_queue(chromium: Any, tmp_path: Path, count: int) -> None:
    """In the picture of a topic exchange with two to five queues, the binding keys of a queue overlap neither the
    binding keys nor the arrow of another queue. This is tested at widths of 1280, 768 and 390 pixels, and for several
    orders of the queues.
    """
    every_key = [["#"], ["kern.*"], ["kern.*", "*.critical"], ["kern.#"], ["kern.*.*"]]
    for keys in random.Random(count).sample([*itertools.permutations(every_key, count)], 8):
        page = recorded(chromium, tmp_path, logs(keys))
        for width in (1280, 768, 390):
            page.resize(width)
            page.until(lambda: page.ask("return innerWidth") == width, "the window")  # noqa: B023
            seek(page, 0.3)
            assert len(page.find(".node.q")) == count
            assert page.ask(OVERLAPPING) == [], (keys, width)


def test_the_binding_keys_of_several_exchanges_are_in_the_order_of_their_arrows(chromium: Any, tmp_path: Path) -> None:
    """If three exchanges are bound to one queue, the binding keys of each are above those of the next exchange, and
    cover no queue and no exchange. This is tested at widths of 1280, 768 and 390 pixels.
    """
    records, names = logs([["#"]]), ["amber", "blue", "cyan"]
    for topology in (each for each in records if each["kind"] == "topology"):
        topology["exchanges"] += [{"name": name, "type": "topic", "alternate": None} for name in names]
        bound = {"to": topology["links"][0]["to"], "toExchange": False, "more": 0}
        topology["links"] = [
            {**bound, "from": name, "keys": [f"{name}.kern.*", f"{name}.*.critical"]} for name in names
        ]
    page = recorded(chromium, tmp_path, records)
    for width in (1280, 768, 390):
        page.resize(width)
        page.until(lambda: page.ask("return innerWidth") == width, "the window")  # noqa: B023
        seek(page, 0.3)
        words, covered = page.ask(
            """
            const box = (each) => each.getBoundingClientRect();
            const words = [...document.querySelectorAll("#picture .arrow-words text")].filter((e) => e.textContent);
            const boxes = [...document.querySelectorAll("#picture .node .box")].map(box);
            const covers = (word) => boxes.some(({ left, right, top, bottom }) =>
              word.right > left && word.left < right && word.bottom > top + 1.5 && word.top < bottom - 1.5);
            words.sort((one, other) => box(one).top - box(other).top);
            return [words.map((each) => each.textContent), words.filter((each) => covers(box(each))).length];
            """
        )
        assert [name for word in words for name in names if f"{name}.kern" in word] == names, (width, words)
        assert covered == 0, width


def width_of(page: Page) -> float:
    """Return the width of the picture, in pixels."""
    return float(page.ask("return document.querySelector('#picture').getBoundingClientRect().width"))


def test_the_picture_can_be_zoomed_and_dragged(chromium: Any, tmp_path: Path) -> None:
    """On the page of `mqtool ui`, the keys i and o, Ctrl with the mouse wheel, and a pinch with two fingers zoom the
    picture. The key f fits the picture to the window. Dragging, or Shift with an arrow key, moves the picture. The
    minus key does not zoom: it slows down the replay of a recording.
    """
    page = recorded(chromium, tmp_path, shop(75))
    fitting = width_of(page)
    page.press("i")
    page.until(lambda: width_of(page) == pytest.approx(1.25 * fitting, abs=2), "larger")
    page.press("o")
    page.press("o")
    page.until(lambda: width_of(page) == pytest.approx(fitting / 1.25, abs=2), "smaller")
    page.press("f")
    page.until(lambda: width_of(page) == pytest.approx(fitting, abs=2), "as large as the window")
    page.press("-")
    page.until(lambda: "0.5× speed" in page.text("#where"), "slower")
    assert width_of(page) == pytest.approx(fitting, abs=2)
    for name in ("closer", "farther", "fit"):
        assert page.ask("const e = document.getElementById(arguments[0]); return e.tabIndex === 0 && !!e.title", name)

    def middle(name: str) -> tuple[float, float]:
        x, y = page.ask(
            "const { x, y, width, height } = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [x + width / 2, y + height / 2]",
            f'.node[data-name="{name}"]',
        )
        return x, y

    # A picture that is smaller than its frame is in the frame's middle.
    for _ in range(3):
        page.press("i")
    page.until(lambda: width_of(page) > 1.9 * fitting, "larger than its frame")
    before = middle("shop")
    wheel = {"type": "mouseWheel", "deltaX": 0, "deltaY": -50, "modifiers": 2}
    for _ in range(3):
        chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {**wheel, "x": before[0], "y": before[1]})
    page.until(lambda: width_of(page) > 3 * fitting, "much larger")
    assert middle("shop") == pytest.approx(before, abs=4)

    page.ask("const frame = document.querySelector('#frame'); frame.scrollTo(300, 100)")
    x, y = middle("shop")
    move = {"x": 600, "y": 300, "button": "left", "buttons": 1, "clickCount": 1}
    chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {**move, "type": "mousePressed"})
    chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {**move, "type": "mouseMoved", "x": 640, "y": 320})
    chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {**move, "type": "mouseReleased", "x": 640, "y": 320})
    page.until(lambda: middle("shop") == pytest.approx((x + 40, y + 20), abs=2), "the picture, dragged")
    page.ask(
        "document.activeElement.blur();"
        "document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', shiftKey: true }))"
    )
    page.until(lambda: middle("shop")[0] < x, "another part")

    large = width_of(page)
    page.ask(
        """
        const frame = document.querySelector("#frame");
        const finger = (type, pointerId, clientX) => frame.dispatchEvent(
          new PointerEvent(type, { pointerId, pointerType: "touch", clientX, clientY: 300, bubbles: true }));
        finger("pointerdown", 11, 500);
        finger("pointerdown", 12, 700);
        finger("pointermove", 12, 600);
        finger("pointerup", 12, 600);
        finger("pointerup", 11, 500);
        """
    )
    assert width_of(page) == pytest.approx(large / 2, abs=2)
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1280, 768, 390], ids="{} pixels".format)
def test_binding_keys_overlap_neither_nodes_nor_each_other(chromium: Any, tmp_path: Path, width: int) -> None:
    """In the picture of `mqtool ui`, binding keys overlap neither nodes nor each other, whatever the width of the
    window. A long list of keys is wrapped after a comma, and its tooltip lists all keys.
    """
    page = recorded(chromium, tmp_path, shop(3))
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seek(page, 0.5)
    labels, nodes = page.ask(
        """
        const box = (e) => { const { left, right, top, bottom } = e.getBoundingClientRect();
          return [left, right, top, bottom]; };
        const labels = [...document.querySelectorAll("#picture .key")].filter((e) => e.textContent);
        return [labels, [...document.querySelectorAll(".node .box")]].map((all) => all.map(box));
        """
    )
    assert len(labels) == 4

    def overlap(one: list[float], other: list[float]) -> bool:
        return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]

    for index, label in enumerate(labels):
        assert not any(overlap(label, each) for each in nodes), index
        assert not any(overlap(label, each) for each in labels[:index]), index
    shown = page.ask(
        "return [...document.querySelectorAll('.arrow-words')].map(e => [e.querySelector('title').textContent,"
        "[...e.querySelectorAll('tspan')].map(line => line.textContent)])"
    )
    lines = dict(shown)["kern.*, *.critical, order.*.paid.immediately"]
    assert len(lines) > 1
    assert all(re.search(r"(,|…|[^,])$", line) for line in lines)
    assert "kern.*," in lines[0]
    assert not [line for line in lines if "*.critica" in line and "*.critical" not in line]


@pytest.mark.parametrize("width", [1280, 768, 390], ids="{} pixels".format)
def test_the_text_in_the_picture_is_large_enough_to_read(chromium: Any, tmp_path: Path, width: int) -> None:
    """Whatever the width of the window, no text in the picture of `mqtool ui` is smaller than 10 pixels, and the page
    is no wider than the window.
    """
    page = recorded(chromium, tmp_path, shop(3))
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seek(page, 0.5)
    sizes = page.ask(
        """
        const picture = document.querySelector("#picture"), scale = picture.getScreenCTM().a;
        return [...picture.querySelectorAll("text")].filter((each) => each.textContent)
          .map((each) => [scale * parseFloat(getComputedStyle(each).fontSize), each.textContent]);
        """
    )
    assert len(sizes) > 20
    assert min(sizes)[0] >= 10, min(sizes)
    assert page.ask("return document.documentElement.scrollWidth") == width


def with_queues(names: list[str]) -> list[dict[str, Any]]:
    """The records of a broker with these queues."""
    records = jobs()
    topology = next(each for each in records if each["kind"] == "topology")
    (queue,) = topology["queues"]
    topology["queues"] = [{**queue, "name": name} for name in names]
    topology["links"] = [{**topology["links"][0], "to": name} for name in names]
    return records


@pytest.mark.parametrize("count", [2, 3], ids="{} queues".format)
def test_a_picture_with_two_or_three_queues_fits_on_a_phone(chromium: Any, tmp_path: Path, count: int) -> None:
    """On a screen that is 390 pixels wide, a picture of `mqtool ui` with two or three queues side by side does not
    scroll sideways. The number of messages in each queue is shown inside the queue's outline.
    """
    page = recorded(chromium, tmp_path, with_queues(["all's queue", "kernel's queue", "critical's queue"][:count]))
    page.resize(390)
    page.until(lambda: page.ask("return innerWidth") == 390, "the window")
    seek(page, 1)
    assert page.ask("const frame = document.querySelector('#frame'); return frame.scrollWidth <= frame.clientWidth")
    lines = page.ask("return [...document.querySelectorAll('.node.q .line')].map((e) => e.textContent)")
    assert lines == ["0 ready · 0 unacked"] * count
    outside = page.ask(
        """
        return [...document.querySelectorAll(".node.q")].filter((queue) => {
          const box = queue.querySelector(".box").getBoundingClientRect(), scale = queue.getScreenCTM().a;
          const { left, right } = queue.querySelector(".line").getBoundingClientRect();
          return left < box.left + 15 * scale || right > box.right;
        }).length;
        """
    )
    assert outside == 0, "lines cross the outlines of queues"


def test_the_number_of_unacknowledged_messages_is_readable_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    """On a screen that is 390 pixels wide, the picture of three queues with 10,000 messages each shows for each queue
    how many messages are ready and, below that, how many are unacknowledged. Both numbers are inside the queue's
    outline, above the dots for its messages.
    """
    records = with_queues(["individual", "batch", "async"])
    topology, moved = (next(each for each in records if each["kind"] == kind) for kind in ("topology", "moved"))
    moved["queues"] = {queue["name"]: [10_000, 0, 10_000] for queue in topology["queues"]}
    page = recorded(chromium, tmp_path, records)
    page.resize(390)
    page.until(lambda: page.ask("return innerWidth") == 390, "the window")
    seek(page, 1)
    seen = page.ask(
        """
        const boxOf = (each) => each.getBoundingClientRect();
        return [...document.querySelectorAll(".node.q")].map((queue) => {
          const texts = [".name", ".line", ".below", ".more"].map((each) => queue.querySelector(each));
          const [, line, below] = texts;
          const box = boxOf(queue.querySelector(".box")), ends = [line, below].map(boxOf);
          const isInside = ends.every(({ left, right }) => box.left < left && right < box.right);
          const dots = [...document.querySelectorAll("#picture .dot path")].map(boxOf);
          const isFree = dots.every(({ top }) => top > ends[1].bottom - 4);
          const tops = texts.map((each) => boxOf(each).top);
          const isBelow = tops.every((top, at) => !at || top > tops[at - 1]);
          return [line.textContent, below.textContent, isInside, isFree, isBelow];
        });
        """
    )
    assert seen == [["10,000 ready", "0 unacked", True, True, True]] * 3


def test_find_counts_the_matches_and_dims_the_rest(chromium: Any, tmp_path: Path) -> None:
    """`Find` on the page of `mqtool ui` searches names, binding keys, headers and bodies, shows the number of matches,
    and dims everything else. If nothing matches, nothing is dimmed.
    """
    page = recorded(chromium, tmp_path, shop(3))
    seek(page, 1)

    def search(text: str, count: int) -> None:
        forget()
        page.press("/")
        page.press(text)
        page.until(lambda: page.text("#found") == f"{count} found", f"{count} with {text!r}")

    def forget() -> None:
        page.press("\ue00c")
        page.until(lambda: page.text("#found") == "" and not page.find(".aside, .found"), "nothing looked for")

    def names_found() -> list[str]:
        return page.ask("return [...document.querySelectorAll('.node.found')].map(e => e.dataset.name)")

    search("audit", 1)
    page.until(lambda: names_found() == ["audit"], "the queue was found")
    assert page.find(".node.aside")
    search("nowhere", 0)
    page.until(lambda: page.find(".aside") == [], "nothing is dimmed")
    search("immediately", 1)
    key = "return document.querySelector('.arrow-words.found')?.dataset.arrow"
    page.until(lambda: page.ask(key) == "x:shop q:audit", "the binding was found")
    search("4 shoes", 1)
    page.until(lambda: names_found() == ["orders-1"], "the queue of the message was found")
    search("nothing", 0)
    search("TEAL", 1)
    page.until(lambda: len(page.find(".dot.found")) == 1, "the message was found")
    search("shoes", 6)
    forget()


def shared(records: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The records of the same play on a broker that also has another user's queue and exchange."""
    for record in records:
        if record["kind"] == "begins":
            yield {**record, "own": {"exchanges": [], "queues": ["jobs"]}}
        elif record["kind"] == "topology":
            (queue,) = record["queues"]
            yield {
                **record,
                "queues": [queue, {**queue, "name": "payroll"}],
                "exchanges": [*record["exchanges"], {"name": "bank", "type": "fanout", "alternate": None}],
                "links": [*record["links"], {**record["links"][0], "from": "bank", "to": "payroll"}],
            }
        else:
            yield record


def test_the_picture_of_a_tutorial_hides_the_queues_of_other_users(chromium: Any, tmp_path: Path) -> None:
    """If a broker also has queues and exchanges of other users, a tutorial's picture shows only the tutorial's own
    queues, exchanges and clients. A button shows the others, and pressing the `a` key hides them again.
    """
    page = recorded(chromium, tmp_path, shared(play()))
    seek(page, 0.45)
    assert {name for name in page.nodes() if "queue" in name or "exchange" in name} == {
        "quorum queue jobs", "exchange (default exchange)",
    }  # fmt: skip
    page.until(lambda: page.text("#others") == "Show 2 others", "the button")
    page.find("#others")[0].click()
    page.until(lambda: {"quorum queue payroll", "exchange bank"} <= set(page.nodes()), "the others")
    page.press("a")
    page.until(lambda: "quorum queue payroll" not in page.nodes(), "the play alone")
