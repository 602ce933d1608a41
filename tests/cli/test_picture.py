"""The picture on the pages of `mqtool ui` and of tutorials: a live diagram of clients, exchanges, queues and messages.
The messages drawn and the counts written beside them always agree.
"""

import itertools
import json
import os
import random
import re
import shlex
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from mqtool import plays
from mqtool.ui.page_server import PageServer, single_file
from tests.brokers import TestBroker, on_any_broker, pictures
from tests.cli.browser import Page
from tests.cli.shell import Shell, wait_until
from tests.cli.test_tutorial import processes_with

# A sample of the widths and of the tutorials: the weekly run has all of them.
pytestmark = [pictures, pytest.mark.sampled(2)]

#: For each queue, what its counters say, and what is drawn: messages, and numbers of messages.
_COUNTED_AND_DRAWN = """
const number = (text) => Number((text || "0").replace(/[+,]/g, ""));
const nodes = [...document.querySelectorAll(".node")];
const dots = [...document.querySelectorAll("#picture .dot")].map((dot) => ({ how: dot.classList, ...dot.dataset }));
const more = (node) => number(node.querySelector(".more").textContent);
return nodes.filter((node) => node.dataset.id.startsWith("q:")).map((queue) => {
  const { id, counted } = queue.dataset;
  const waiting = dots.filter(({ how, node, fate }) =>
    how.contains("resting") && node === id && ["ready", "requeued", "stream"].includes(fate));
  const unacked = dots.filter(({ queue, fate }) => queue === id && fate === "unacknowledged");
  const consumers = nodes.filter((node) => node.dataset.id.startsWith("c:") && node.dataset.queue === id);
  return {
    says: queue.ariaLabel,
    ready: waiting.length + more(queue),
    unacked: unacked.length + consumers.reduce((sum, consumer) => sum + more(consumer), 0) + number(counted),
  };
});
"""


def differences(page: Page, within: float = 0) -> list[dict[str, Any]]:
    """Return the queues whose counters differ from what is drawn, at a moment within the next `within` milliseconds."""
    found = []
    look = f"const done = arguments[1]; setTimeout(() => done((() => {{ {_COUNTED_AND_DRAWN} }})()), arguments[0]);"
    for queue in page.driver.execute_async_script(look, random.uniform(0, within)):
        numbers = [
            int(each.replace(",", "")) for each in re.findall(r"([\d,]+) (?:ready|unacked|message)", queue["says"])
        ]
        if numbers != [queue["ready"], queue["unacked"]][: len(numbers)]:
            found.append(queue)
    return found


def names(page: Page) -> tuple[set[str], set[str]]:
    """Return the names of publishers and consumers, and those of queues."""
    found = page.ask("return [...document.querySelectorAll('.node')].map((e) => [e.dataset.id[0], e.dataset.name])")
    return {name for kind, name in found if kind in "pc"}, {name for kind, name in found if kind == "q"}


def seek(page: Page, part: float) -> None:
    """Show the picture at a part of the time, and wait until it is drawn."""
    page.driver.execute_async_script(
        """
        const [part, done] = arguments, time = document.querySelector("#time");
        time.step = "any";
        time.value = part * 1000;
        time.dispatchEvent(new Event("input"));
        requestAnimationFrame(() => requestAnimationFrame(done));
        """,
        part,
    )


#: The texts in the picture that are drawn over each other, or over a box, or over the line of another arrow. Moving
#: messages pass over the empty parts of boxes, and over lines.
OVERLAPPING = """
const box = (each) => each.getBoundingClientRect();
const drawn = (selector) => [...document.querySelectorAll(`#picture ${selector}`)].filter((each) => each.textContent);
const cross = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
const fixed = drawn(".arrow-words text, .node .note"), moving = drawn(".dot.moving:not(.ended) text");
const words = [...fixed, ...moving], names = drawn(".node :is(.name, .line, .below)");
const found = [];
const note = (one, other) => cross(box(one), box(other)) && found.push([one.textContent, other.textContent]);
words.forEach((each, index) => words.slice(0, index).forEach((other) => note(each, other)));
for (const each of moving) for (const name of names) note(each, name);
for (const each of fixed) for (const shape of drawn(".node"))
  if (cross(box(each), box(shape.querySelector(".box")))) found.push([each.textContent, shape.dataset.id]);
for (const each of fixed) for (const arrow of document.querySelectorAll(".arrow")) {
  const { from, to } = arrow.dataset, path = arrow.querySelector("path"), words = each.closest(".arrow-words");
  if (words?.dataset.arrow === `${from} ${to}`) continue;
  const { left, right, top, bottom } = box(each);
  for (let at = 0; at < path.getTotalLength(); at += 3) {
    const { x, y } = path.getPointAtLength(at).matrixTransform(path.getScreenCTM());
    if (left < x && x < right && top + 2 < y && y < bottom - 2) {
      found.push([each.textContent, `${from} ${to}`]);
      break;
    }
  }
}
return found;
"""


#: All plays except publisher-confirms, whose 30,000 messages may take minutes beside a browser.
_SHOWN = [each for each in plays.PLAYS if each != "publisher-confirms"]


@pytest.mark.parametrize("name", _SHOWN)
def test_the_picture_of_a_tutorial_has_correct_counts_and_names_and_no_overlapping_labels(
    lonely_shell: Shell, chromium: Any, name: str
) -> None:
    """In the picture of `tutorial run --ui`, the counts of each queue agree with the messages drawn, both while the
    tutorial is running and while its recording is replayed. Clients have the names of the tutorial's terminals, and a
    generated queue name appears only if a terminal shows it. At widths of 1280, 768 and 390 pixels, no arrow's label
    overlaps another label, another arrow, or the box of a client, exchange or queue.
    """
    lonely_shell.environment["TUTORIAL_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    command = lonely_shell.start("mqtool", "tutorial", "run", name, "--ui", ready=False).wait_for_stdout("\n")
    page = Page(chromium, command.stdout.split("\n")[0])
    page.until(lambda: page.find("#next"), "the play")
    # Press Next as soon as it is enabled.
    page.ask(
        """
        setInterval(() => {
          const next = document.querySelector("#next");
          if (next.textContent === "Next" && !next.disabled) next.click();
        }, 50);
        """
    )
    terminals: set[str] = set()
    while "passed" not in page.text("#narration"):
        assert differences(page, 400) == []
        clients, queues = names(page)
        terminals |= set(page.ask("return [...document.querySelectorAll('.terminal h3')].map((e) => e.textContent)"))
        assert clients <= terminals
        printed = page.ask("return document.querySelector('#terminals').textContent")
        assert not [each for each in queues if re.search(r"\bgen-|[0-9a-f]{12}", each) and each not in printed]
        assert "check failed" not in page.text("#narration")
        assert command.process.poll() is None, command.stderr
    moments = random.Random(name)
    for width in (1280, 768, 390):
        page.resize(width)
        page.until(lambda: page.ask("return innerWidth") == width, "the window")  # noqa: B023
        for _ in range(20):
            moment = moments.random()
            seek(page, moment)
            assert differences(page) == [], moment
            assert page.ask(OVERLAPPING) == [], (width, moment)
    assert page.complaints() == []
    command.interrupt().wait()
    chromium.get("about:blank")
    wait_until(lambda: not processes_with(mark), "no process that the command has started")


def message(number: int, body: str) -> dict[str, Any]:
    """The details of a message in events."""
    return {"exchange": "", "routing_key": "jobs", "headers": {}, "properties": {}, "size": len(body), "body": body}


def published(t: int, number: int, body: str = "x") -> Iterable[dict[str, Any]]:
    """The events of a message that is published to the queue jobs."""
    event = {"kind": "event", "t": t, "message": number}
    yield {**event, "what": "published", "from": {"client": "boss"}, "paths": [["", "jobs"]],
           "details": message(number, body)}  # fmt: skip
    yield {**event, "what": "ready", "queue": "jobs", "copy": number}


def happens(t: int, what: str, copy: int, **fields: object) -> dict[str, Any]:
    """An event of a message in the queue jobs."""
    return {"kind": "event", "t": t, "what": what, "queue": "jobs", "copy": copy, **fields}


def jobs(consumers: Iterable[dict[str, Any]] = (), ready: int = 0, t: int = 0) -> list[dict[str, Any]]:
    """The records of a broker with a queue jobs, and with these consumers."""
    queue = {"name": "jobs", "type": "quorum", "ready": ready, "unacked": 0, "deadLetterExchange": None,
             "deadLetterKey": None, "arguments": {}}  # fmt: skip
    return [
        {"kind": "about", "t": t, "title": "a broker", "vhost": "/", "note": ""},
        {
            "kind": "topology",
            "t": t,
            "exchanges": [{"name": "", "type": "direct", "alternate": None}],
            "links": [{"from": "", "to": "jobs", "toExchange": False, "keys": [], "more": 0}],
            "queues": [queue],
            "consumers": [{"queue": "jobs", "prefetch": 1, "isAutomatic": False, **each} for each in consumers],
        },
        {"kind": "snapshot", "t": t, "waiting": []},
        {"kind": "moved", "t": t, "queues": {"jobs": [ready, 0, ready]}, "taken": [], "published": []},
    ]


def recorded(chromium: Any, directory: Path, records: Iterable[dict[str, Any]]) -> Page:
    """Open a recording of these records, paused."""
    file = directory / "recording.html"
    file.write_bytes(single_file(records))
    page = Page(chromium, file.as_uri())
    page.until(lambda: page.find(".node"), "the picture")
    return page


def places(page: Page, fate: str) -> list[tuple[float, float]]:
    """Return the positions at which the messages in this state (`fate`) are drawn."""
    found = page.ask(
        """
        return [...document.querySelectorAll("#picture .dot")].filter((dot) => dot.dataset.fate === arguments[0])
          .map((dot) => dot.getBoundingClientRect()).map(({ x, y }) => [x, y]);
        """,
        fate,
    )
    return [(x, y) for x, y in found]


def test_messages_published_at_the_same_time_are_drawn_apart(chromium: Any, tmp_path: Path) -> None:
    """In the picture of `mqtool ui`, six messages published in the same millisecond move one after another. In the
    queue, these messages are drawn side by side.
    """
    sent = [event for number in range(6) for event in published(1000, number)]
    page = recorded(chromium, tmp_path, [*jobs(), *sent, {"kind": "now", "t": 8000}])
    seen = 0
    for step in range(40):
        seek(page, step / 40)
        found = places(page, "ready")
        assert len({(round(x), round(y)) for x, y in found}) == len(found), step
        seen = max(seen, len(found))
    assert seen == 6
    seek(page, 1)
    row = sorted(places(page, "ready"))
    assert all(right - left >= 10 for (left, _), (right, _) in itertools.pairwise(row))
    assert page.nodes()["quorum queue jobs"] == "6 ready · 0 unacked"


@pytest.mark.parametrize(("width", "ready", "row"), [(1280, 12, 10), (1280, 5_000, 9), (390, 9_356, 6)])
def test_the_picture_shows_up_to_ten_messages_of_a_queue_and_the_number_of_the_others(
    chromium: Any, tmp_path: Path, width: int, ready: int, row: int
) -> None:
    """If a queue has many messages, the picture of `mqtool ui` shows up to ten of them, and the number of the others,
    such as +4,991. The number is inside the queue's outline, even on a phone with two other queues in the picture.
    """
    records = jobs(ready=ready)
    (queue,) = records[1]["queues"]
    records[1]["queues"] += [{**queue, "name": name, "ready": 0} for name in ("mail", "stock")]
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    seek(page, 1)
    page.until(lambda: page.find(".node.q .more")[0].text == f"+{ready - row:,}", "the number")
    assert page.dots() == [("ready", "q:jobs")] * row
    assert differences(page) == []
    scale = page.ask("return document.querySelector('.node.q').getScreenCTM().a")
    assert box(page, ".node.q .more")["left"] >= box(page, ".node.q .box")["left"] + 15 * scale


def test_a_consumer_with_prefetch_1_is_never_drawn_with_two_messages(chromium: Any, tmp_path: Path) -> None:
    """The picture of `mqtool ui` never draws two messages at a consumer whose prefetch is 1, even if the consumer
    acknowledges several messages within a few milliseconds.
    """
    records = [*jobs([{"name": "one/tag", "label": "worker 1"}])]
    records += [event for number in range(4) for event in published(1000, number)]
    for number in range(4):
        to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
        records += [happens(1001 + number, "delivered", number, **to), happens(1001 + number, "acknowledged", number)]
    page = recorded(chromium, tmp_path, records)
    most = 0
    for step in range(60):
        seek(page, step / 60)
        assert differences(page) == []
        most = max(most, len(places(page, "unacknowledged")))
    assert most == 1


def test_a_consumer_with_prefetch_1_gets_its_next_message_once_its_acknowledgement_has_arrived(
    chromium: Any, tmp_path: Path
) -> None:
    """In the picture of `mqtool ui`, an acknowledgement moves from the consumer to the queue as a tick. If the
    consumer's prefetch is 1, the next message leaves the queue only when the tick has arrived there. Until then, the
    queue counts the next message as ready.
    """
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
    records = [*jobs([{"name": "one/tag", "label": "worker 1"}]), *published(1000, 0), *published(1000, 1)]
    records += [happens(1001, "delivered", 0, **to), happens(4000, "acknowledged", 0)]
    records += [happens(4000, "delivered", 1, **to), {"kind": "now", "t": 8000}]
    page = recorded(chromium, tmp_path, records)
    ticks = both = 0
    for step in range(100):
        seek(page, 0.3 + step / 250)
        assert differences(page) == []
        moving = [fate for fate, _ in page.dots("moving")]
        ticks += "acknowledged" in moving
        both += "acknowledged" in moving and "unacknowledged" in moving
        if "acknowledged" in moving:
            assert page.nodes()["quorum queue jobs"] == "1 ready · 0 unacked"
    assert ticks > 3
    assert both == 0
    seek(page, 1)
    assert page.dots() == [("unacknowledged", page.ask("return document.querySelector('.node.c').dataset.id"))]


def test_a_consumer_without_a_prefetch_limit_is_drawn_with_several_messages(chromium: Any, tmp_path: Path) -> None:
    """If a consumer without a prefetch limit receives several messages in the same millisecond, the picture of
    `mqtool ui` draws several messages at the consumer at once, even if the consumer acknowledges each message
    immediately.
    """
    records = [*jobs([{"name": "one/tag", "label": "worker 1", "prefetch": 0}])]
    for number in range(4):
        to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
        records += [*published(1000, number), happens(1000, "delivered", number, **to)]
        records.append(happens(1000, "acknowledged", number))
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 5000}])
    most = 0
    for step in range(60):
        seek(page, step / 60)
        assert differences(page) == []
        most = max(most, len(places(page, "unacknowledged")))
    assert most > 1


def test_a_consumer_that_has_ended_is_drawn_until_its_last_message_has_been_drawn(
    chromium: Any, tmp_path: Path
) -> None:
    """If two consumers of a queue end while the picture of `mqtool ui` is still drawing their messages, the picture
    shows the boxes of both consumers until it has drawn the last of these messages. At every moment, the numbers of
    ready and unacknowledged messages that the picture gives for the queue agree with the messages that it draws.
    """
    consumers = [{"name": f"{each}/tag", "label": f"worker {each}"} for each in range(2)]
    records = jobs(consumers)
    for number in range(60):
        to = {"consumer": f"{number % 2}/tag", "no_ack": False, "redelivered": False, "to": None}
        records += [*published(1000, number), happens(1000, "delivered", number, **to)]
        records.append(happens(1000, "acknowledged", number))
    topology = next(each for each in records if each["kind"] == "topology")
    records += [{**topology, "t": 1000, "consumers": []}, *published(9000, 60)]
    page = recorded(chromium, tmp_path, records)
    count = "return ['.node.c', '#picture .dot'].map((each) => document.querySelectorAll(each).length)"
    still_drawn = True
    for step in range(120):
        seek(page, step / 120)
        assert differences(page) == [], step
        if step % 5 == 0:
            consumers, messages = page.ask(count)
            still_drawn = still_drawn and (consumers, messages) != (0, 0)
            assert consumers == (2 if still_drawn else 0), step
    assert not still_drawn


def test_the_message_of_a_killed_worker_moves_back_to_its_queue(chromium: Any, tmp_path: Path) -> None:
    """If a worker is killed, the picture of `mqtool ui` moves the worker's message back to its queue, and then to the
    next worker.
    """
    workers = [{"name": f"{each}/tag", "label": f"worker {each}"} for each in ("1", "2")]
    to = {"no_ack": False, "to": None}
    records = [
        *jobs(workers),
        *published(1000, 0),
        happens(1000, "delivered", 0, consumer="1/tag", redelivered=False, **to),
        happens(3000, "requeued", 0, why="lost"),
        happens(3000, "delivered", 0, consumer="2/tag", redelivered=True, **to),
    ]
    page = recorded(chromium, tmp_path, records)
    seen: list[tuple[str, str]] = []
    for step in range(80):
        seek(page, step / 80)
        assert differences(page) == []
        for where in page.ask(
            "return [...document.querySelectorAll('#picture .dot')].map(e => [e.dataset.fate, e.dataset.node])"
        ):
            if not seen or seen[-1] != tuple(where):
                seen.append((where[0], where[1]))
    assert seen[-3:] == [("unacknowledged", "c:1/tag"), ("requeued", "q:jobs"), ("unacknowledged", "c:2/tag")]


@pytest.mark.parametrize("why", ["closed", "released"])
def test_a_worker_that_ends_is_drawn_with_all_its_messages_before_they_are_requeued(
    chromium: Any, tmp_path: Path, why: str
) -> None:
    """If a worker receives three messages, acknowledges none and ends within milliseconds, the picture of `mqtool ui`
    first draws all three messages at the worker, and only then moves them back to their queue.
    """
    records = jobs([{"name": "1/tag", "label": "worker 1", "prefetch": 0}])
    to = {"consumer": "1/tag", "no_ack": False, "redelivered": False, "to": None}
    for number in range(3):
        records += [*published(1000, number), happens(1001, "delivered", number, **to)]
    records += [happens(1002, "requeued", number, why=why) for number in range(3)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}])
    most = 0
    for step in range(160):
        seek(page, step / 160)
        assert differences(page) == []
        most = max(most, page.dots().count(("unacknowledged", "c:1/tag")))
        fates = {fate for fate, _ in page.dots("moving")}
        assert not {"requeued", "unacknowledged"} <= fates, step
    assert most == 3
    assert page.dots() == [("requeued", "q:jobs")] * 3


def test_a_message_lost_in_a_restart_disappears_from_the_picture(chromium: Any, tmp_path: Path) -> None:
    """If a queue has a persistent and a transient message, but the broker reports only one message after a restart,
    the picture of `mqtool ui` removes the transient message and keeps the persistent one.
    """
    records = [*jobs(), *published(1000, 0, "in ink"), *published(1001, 1, "in pencil")]
    records[-4]["details"]["properties"]["delivery_mode"] = 2
    records.append({"kind": "moved", "t": 4000, "queues": {"jobs": [1, 0, 2]}, "taken": [], "published": []})
    page = recorded(chromium, tmp_path, records)
    seek(page, 0.45)
    assert page.nodes()["quorum queue jobs"] == "2 ready · 0 unacked"
    seek(page, 1)
    assert page.nodes()["quorum queue jobs"] == "1 ready · 0 unacked"
    page.find(".dot.resting")[0].click()
    page.until(lambda: "in ink" in page.text("#facts"), "the persistent message")


def of_server(t: int, request: str, reply: str) -> list[dict[str, Any]]:
    """The events of a request that a server gets, answers and acknowledges within the same millisecond."""
    to = {"client": "server", "connection": "10.0.0.7:50001 -> 10.0.0.1:5672", "protocol": "AMQP 0-9-1"}
    taken = {"consumer": f"{to['connection']} (1)/tag", "no_ack": False, "redelivered": False, "to": to}
    answered = {"kind": "event", "t": t, "message": 1}
    return [
        *published(t, 0, request),
        happens(t, "delivered", 0, **taken),
        {**answered, "what": "published", "from": to, "paths": [["", "replies"]], "details": message(1, reply)},
        {**answered, "what": "ready", "queue": "replies", "copy": 1},
        happens(t, "acknowledged", 0),
    ]


def drawn(page: Page) -> list[tuple[str, str]]:
    """The states of all messages drawn, each with the box that it is in or moves to."""
    found = page.ask(
        "return [...document.querySelectorAll('#picture .dot')].map((e) => [e.dataset.fate, e.dataset.node])"
    )
    return [(fate, node) for fate, node in found]


def test_a_reply_is_drawn_only_after_its_request_has_arrived(chromium: Any, tmp_path: Path) -> None:
    """If an RPC server receives a request and publishes the reply in the same millisecond, a tutorial's picture first
    moves the request to the server. The picture moves the reply, and the server's terminal shows the request, only
    after the request has arrived.
    """
    records = [*play(), *of_server(12_000, "fib(6)", "8")]
    line = {"t": 12_000, "kind": "printed", "terminal": "server", "line": "[.] fib(6)", "n": 50}
    opened = next(each for each in records if each["kind"] == "opened")
    opened["names"] = ["boss", "server"]
    # The terminal's line is recorded before the broker's events.
    page = recorded(chromium, tmp_path, [*records[:-6], line, *records[-6:], {"kind": "now", "t": 20_000}])
    server = "c:10.0.0.7:50001 -> 10.0.0.1:5672 (1)/tag"
    moved, printed_at = [], 0
    for step in range(120):
        seek(page, 0.48 + step / 480)
        assert differences(page) == []
        for each in drawn(page):
            if each[0] != "acknowledged" and (not moved or moved[-1] != each):
                moved.append(each)
        if not printed_at and "fib(6)" in page.text("#terminals"):
            printed_at = len(moved)
    request = [("ready", "x:"), ("ready", "q:jobs"), ("unacknowledged", server)]
    assert moved == [*request, ("ready", "x:"), ("ready", "q:replies")]
    assert printed_at > 3


def test_the_count_of_a_queue_includes_undrawn_messages_only_after_the_drawn_ones_have_arrived(
    chromium: Any, tmp_path: Path
) -> None:
    """If 100 messages are published at the same time, the picture of `mqtool ui` draws only twelve of them. The
    queue's count includes the other 88 only after these twelve have arrived, even if the broker reports the 88
    earlier.
    """
    sent = [event for number in range(12) for event in published(1000, number)]
    counted = {"kind": "moved", "t": 1001, "queues": {"jobs": [100, 0, 100]}, "taken": [], "published": []}
    page = recorded(chromium, tmp_path, [*jobs(), *sent, counted, {"kind": "now", "t": 8000}])
    for step in range(60):
        seek(page, step / 60)
        ready = int(page.nodes()["quorum queue jobs"].split()[0])
        assert ready <= 12 or not page.dots("moving"), step
        assert differences(page) == []
    assert ready == 100


def reconnecting(label: str = "worker 1") -> list[dict[str, Any]]:
    """The records of a consumer that reconnects: the second consumer has the same name, and gets a message before the
    topology contains it, while the first one is still there.
    """
    connections = [f"10.0.0.7:{port} -> 10.0.0.1:5672" for port in (50001, 50002)]
    records = [*jobs([{"name": f"{connections[0]} (1)/one", "label": label}]), *published(1000, 0), *published(4000, 1)]
    for number, connection in enumerate(connections):
        to = {"client": label, "connection": connection, "protocol": "AMQP 0-9-1"}
        fields = {"consumer": f"{connection} (1)/one", "redelivered": False, "no_ack": False, "to": to}
        records.append(happens(1000 + 3000 * number, "delivered", number, **fields))
    again = jobs([{"name": f"{connections[1]} (1)/one", "label": label}], t=4100)
    return [*records, *[each for each in again if each["kind"] == "topology"]]


def consumers(page: Page) -> list[str]:
    """The names of the consumers' boxes."""
    return list(page.ask("return [...document.querySelectorAll('.node.c')].map((e) => e.dataset.name)"))


def test_a_client_that_reconnects_is_one_box_in_the_picture_of_a_tutorial(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, a client is drawn as a single box even after it has reconnected."""
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    page = recorded(chromium, tmp_path, [*begins, *reconnecting(), {"kind": "now", "t": 9000}])
    for step in range(60):
        seek(page, step / 60)
        assert consumers(page) == ["worker 1"], step
    assert len(page.dots()) == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_no_message_covers_the_rate_of_an_arrow(chromium: Any, tmp_path: Path, width: int) -> None:
    """While many messages move along an arrow in the picture of `mqtool ui`, on a wide page or on a phone, no message
    covers the arrow's message rate.
    """
    records = jobs()
    for number in range(60):
        records += published(1000 + 50 * number, number)
    counts = [(1000, 0), (4000, 90)]
    records += [
        {"kind": "moved", "t": t, "queues": {"jobs": [n, 0, n]}, "taken": [], "published": [["boss", "", n]]}
        for t, n in counts
    ]
    page = recorded(chromium, tmp_path, sorted(records, key=lambda each: each["t"]))
    page.resize(width)
    seek(page, 0.51)
    covered = page.ask(
        """
        const box = (each) => each.getBoundingClientRect();
        const rates = [...document.querySelectorAll(".rate")].filter((each) => each.textContent).map(box);
        const dots = [...document.querySelectorAll(".dot.moving path")].map(box);
        const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top < a.bottom - 3;
        return [rates.length, dots.length, rates.filter((rate) => dots.some((dot) => meet(rate, dot))).length];
        """
    )
    assert covered[0] == 2, covered
    assert covered[1] > 4
    assert covered[2] == 0


def rates(page: Page) -> list[str]:
    """The rates of the arrows."""
    return list(page.ask("return [...document.querySelectorAll('.rate')].map((e) => e.textContent).filter(Boolean)"))


def test_the_rate_of_an_arrow_disappears_when_no_messages_move(chromium: Any, tmp_path: Path) -> None:
    """When messages stop moving, the picture of `mqtool ui` removes the rates from the arrows within a few seconds,
    even if the broker sends no further report. While a recording is paused, a rate stays.
    """
    counted = [(0, 0), (1000, 100), (2000, 200)]
    records = [
        {"kind": "moved", "t": t, "queues": {"jobs": [n, 0, n]}, "taken": [], "published": [["boss", "", n]]}
        for t, n in counted
    ]
    page = recorded(chromium, tmp_path, [*jobs(), *records, {"kind": "now", "t": 10_000}])
    seen = []
    for step in range(100):
        seek(page, step / 100)
        seen.append(rates(page))
    assert [shown for shown, _ in itertools.groupby(seen)] == [[], ["100/s", "100/s"], []]
    assert len([shown for shown in seen if shown]) <= 31
    seek(page, 0.48)
    assert rates(page) == ["100/s", "100/s"]
    page.ask("document.querySelector('#pause').click()")
    page.until(lambda: not rates(page), "no rate")


#: The queue for the replies to an RPC client.
REPLIES = "amq.gen-3QaZkCC08N2hJv-BxYH1Aw"


def of_rpc() -> list[dict[str, Any]]:
    """The records of a play in which the terminal boss calls the terminal server, and gets the reply."""
    ends = {"server": "10.0.0.7:50001 -> 10.0.0.1:5672", "boss": "10.0.0.7:50002 -> 10.0.0.1:5672"}
    server, client = ({"name": f"{ends[each]} (1)/tag", "label": each} for each in ends)
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*jobs([server, {**client, "queue": REPLIES}]), *of_server(1000, "fib(6)", "8")]
    records[1]["queues"].append({**records[1]["queues"][0], "name": REPLIES, "type": "classic"})
    records[1]["links"].append({**records[1]["links"][0], "to": REPLIES})
    for each in records:
        if each.get("message") == 1:
            each.update({"paths": [["", REPLIES]]} if "paths" in each else {"queue": REPLIES})
    to = {"client": "boss", "connection": ends["boss"], "protocol": "AMQP 0-9-1"}
    got = {"consumer": client["name"], "no_ack": True, "redelivered": False, "to": to}
    records.append({**happens(1001, "delivered", 1, **got), "queue": REPLIES})
    return [*begins, *records]


def test_a_terminal_that_publishes_and_consumes_is_one_box(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, a terminal whose program publishes and consumes is one box. An RPC client is on the
    left, and the server on the right; the reply moves from the server through the exchange and the client's own queue
    to the client.
    """
    page = recorded(chromium, tmp_path, of_rpc())
    moved: list[tuple[str, str]] = []
    for step in range(1, 120):
        seek(page, 0.2 + step / 160)
        assert differences(page) == [], step
        if "publisher and consumer server" in page.nodes():
            moved += [each for each in drawn(page) if each not in moved]
        assert len(page.find(".node")) == 5, step
    seek(page, 0.4)
    boxes = {name: box(page, f'.node[data-name="{name}"]') for name in ("boss", "server", "jobs")}
    assert boxes["boss"]["right"] < boxes["jobs"]["left"]
    assert boxes["jobs"]["right"] < boxes["server"]["left"]
    way = [("ready", "x:"), ("ready", f"q:{REPLIES}"), ("acknowledged", "p:boss")]
    assert [each for each in moved if each in way] == way
    arrows = page.ask("return [...document.querySelectorAll('.arrow')].map((e) => [e.dataset.from, e.dataset.to])")
    assert [f"q:{REPLIES}", "p:boss"] in arrows
    server = page.ask("return document.querySelector('.node[data-name=server]').dataset.id")
    assert server.startswith("c:")
    assert [server, "x:"] in arrows


def test_a_terminal_that_publishes_and_consumes_is_one_row_of_the_table(chromium: Any, tmp_path: Path) -> None:
    """A tutorial's page shows its terminals in a picture and in a table. If the program in a terminal publishes and
    consumes, the table has one row for the terminal, with the program's exchange and queue. A click on the terminal in
    the picture opens one panel, with the heading "Publisher and consumer".
    """
    page = recorded(chromium, tmp_path, of_rpc())
    seek(page, 0.4)
    page.find("#table")[0].click()
    page.until(lambda: page.find("#clients tbody tr"), "the table")
    rows = page.ask("return [...document.querySelectorAll('#clients tbody tr')].map((e) => e.innerText.split('\t'))")
    assert [row[:3] for row in rows] == [
        ["boss", "publisher and consumer", f"(default exchange), {REPLIES}"],
        ["server", "publisher and consumer", "(default exchange), jobs"],
    ]
    page.find('.node[data-name="server"]')[0].click()
    page.until(lambda: "Publisher and consumer" in page.text("#facts"), "the panel")
    assert "jobs" in page.text("#facts")


def test_the_picture_shows_a_queue_with_a_generated_name_once_it_is_used(chromium: Any, tmp_path: Path) -> None:
    """A tutorial's picture shows a queue with a generated name only once the queue has a consumer or a message. Before
    that, it is not known to which client the queue belongs.
    """
    records = of_rpc()
    (topology,) = [each for each in records if each["kind"] == "topology"]
    declared = {**topology, "t": 500, "consumers": topology["consumers"][:1]}
    late = [{**each, "t": each["t"] + 3000} for each in records if each["kind"] == "event"]
    begins = [each for each in records if each["kind"] not in ("topology", "event")]
    page = recorded(chromium, tmp_path, [*begins, declared, *late, {"kind": "now", "t": 12_000}])
    seek(page, 0.2)
    assert names(page) == ({"server"}, {"jobs"})
    seek(page, 0.45)
    assert names(page) == ({"boss", "server"}, {"jobs", "boss's queue"})


def test_the_picture_does_not_show_a_deleted_queue_at_the_end(chromium: Any, tmp_path: Path) -> None:
    """If a tutorial's queue is deleted shortly before the tutorial publishes its last message, the picture at the end
    of the tutorial's recording does not show the queue. That is the case even if, at the time of the deletion, the
    picture was still moving a message from this queue to a consumer.
    """
    records = of_rpc()
    (topology,) = [each for each in records if each["kind"] == "topology"]
    without = {**topology, "t": 1500, "queues": topology["queues"][:1], "links": topology["links"][:1]}
    without["consumers"] = topology["consumers"][:1]
    gone = {**without, "t": 4000, "consumers": []}
    page = recorded(chromium, tmp_path, [*records, without, *published(1600, 7), gone])
    seek(page, 1)
    assert names(page) == ({"boss", "server"}, {"jobs"})


@pytest.mark.parametrize("is_told", [True, False], ids=["event", "next scene"])
def test_the_picture_removes_the_deleted_reply_queue_of_an_rpc_client(
    chromium: Any, tmp_path: Path, is_told: bool
) -> None:
    """If an RPC client of a tutorial deletes its reply queue before the page has asked the broker for a list of
    queues, the picture still shows this queue while a reply moves through it. The picture then removes the queue when
    the broker reports the deletion or, without such a report, when the commands of the next scene begin.
    """
    records = of_rpc()
    (topology,) = [each for each in records if each["kind"] == "topology"]
    topology |= {"queues": topology["queues"][:1], "links": topology["links"][:1]}
    topology["consumers"] = topology["consumers"][:1]
    records += [of_terminal(900, 20, "typed"), of_terminal(1200, 21, "finished")]
    deleted = {"kind": "event", "t": 1100, "what": "purged", "queue": REPLIES}
    later = {"kind": "goes_on", "t": 5000, "n": 22, "number": 2}
    records = sorted([*records, deleted if is_told else later], key=lambda each: each["t"])
    page = recorded(chromium, tmp_path, [*records, *published(8000, 7), {"kind": "now", "t": 12_000}])
    page.ask("document.querySelector('#time').step = 'any'")
    shown = []
    for step in range(60):
        seek(page, step / 60)
        assert differences(page) == []
        shown.append("boss's queue" in names(page)[1])
    assert True in shown
    last = len(shown) - shown[::-1].index(True)
    assert 10 < last < (25 if is_told else 30)
    seek(page, 1)
    assert names(page)[1] == {"jobs"}


def of_dead_letters() -> list[dict[str, Any]]:
    """The records of a play in which boss publishes to the exchange payments, and later reads dead letters."""
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = jobs([{"name": "one/tag", "label": "worker 1"}])
    (topology,) = [each for each in records if each["kind"] == "topology"]
    topology["exchanges"].append({"name": "payments", "type": "topic", "alternate": None})
    topology["queues"].append({**topology["queues"][0], "name": "jobs.dlq"})
    topology["queues"][0] |= {"deadLetterExchange": "", "deadLetterKey": "jobs.dlq"}
    topology["links"] += [
        {**topology["links"][0], "to": "jobs.dlq"},
        {**topology["links"][0], "from": "payments", "keys": ["charge.#"]},
    ]
    sent, ready = published(1000, 1)
    sent |= {"paths": [["payments", "jobs"]], "details": {**sent["details"], "exchange": "payments"}}
    reader = {"name": "two/tag", "label": "boss", "queue": "jobs.dlq", "prefetch": 1, "isAutomatic": False}
    looks = {**topology, "t": 5000, "consumers": [*topology["consumers"], reader]}
    return [*begins, {"kind": "goes_on", "t": 0, "n": 10}, *records, sent, ready, looks, {"kind": "now", "t": 9000}]


def test_arrows_from_two_exchanges_do_not_cross(chromium: Any, tmp_path: Path) -> None:
    """If a tutorial's queues `jobs` and `jobs.dlq` are bound to the default exchange, and `jobs` is also bound to the
    exchange `payments`, the picture draws the default exchange below `payments`, so that the arrows from the two
    exchanges do not cross. This is the case although the broker lists the default exchange first.
    """
    page = recorded(chromium, tmp_path, of_dead_letters())
    seek(page, 0.3)
    assert len(page.find(".arrow.binding")) == 3
    exchanges = [box(page, f'.node.x[data-name="{name}"]')["top"] for name in ("payments", "(default exchange)")]
    queues = [box(page, f'.node.q[data-name="{name}"]')["top"] for name in ("jobs", "jobs.dlq")]
    assert exchanges == sorted(exchanges)
    assert queues == sorted(queues)


def test_a_receiver_that_was_stopped_disappears_with_its_queue(chromium: Any, tmp_path: Path) -> None:
    """If a receiver of a tutorial is stopped and the broker deletes the receiver's queue, both disappear from the
    tutorial's picture immediately, before the page next asks the broker for a list of consumers.
    """
    records = [*play()[:3], *jobs([{"name": "one/tag", "label": "worker 1"}])]
    records = json.loads(json.dumps(records).replace('"jobs"', f'"{REPLIES}"'))
    records += [of_terminal(500, 21, "typed", "worker 1"), {"kind": "goes_on", "t": 3000, "n": 22, "number": 1}]
    records.append({"kind": "event", "t": 4000, "what": "purged", "queue": REPLIES})
    records += [of_terminal(4100, 23, "finished", "worker 1"), of_terminal(9000, 24, "typed", "boss")]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 10_000}])
    seek(page, 0.2)
    assert names(page) == ({"worker 1"}, {"worker 1's queue"})
    seek(page, 0.5)
    assert names(page) == (set(), set())


def test_the_default_exchange_is_not_drawn_before_a_message_passes_through_it(chromium: Any, tmp_path: Path) -> None:
    """If a tutorial has declared an exchange and a queue, but has not bound the queue to the exchange yet, its picture
    does not show the default exchange, to which every queue is bound. It shows the default exchange once a message
    passes through it.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs()]
    topology = next(each for each in records if each["kind"] == "topology")
    topology["exchanges"].append({"name": "orders", "type": "fanout", "alternate": None})
    page = recorded(chromium, tmp_path, [*records, *published(4000, 0), {"kind": "now", "t": 8000}])
    seek(page, 0.2)
    assert {"exchange orders", "quorum queue jobs"} == set(page.nodes())
    seek(page, 1)
    assert "exchange (default exchange)" in page.nodes()


def test_a_terminal_that_publishes_and_later_consumes_stays_where_it_is(chromium: Any, tmp_path: Path) -> None:
    """If a terminal of a tutorial first publishes, and later consumes from a queue, the terminal's box stays on the
    left side of the picture, to the left of the exchanges.
    """
    page = recorded(chromium, tmp_path, of_dead_letters())
    for at in (0.3, 0.8):
        seek(page, at)
        boss, exchange = box(page, '.node[data-name="boss"]'), box(page, '.node[data-name="payments"]')
        assert boss["right"] < exchange["left"], at
    assert page.find('.arrow.consumes[data-from="q:jobs.dlq"][data-to="p:boss"]')


def test_the_box_of_a_program_whose_consumer_is_cancelled_shows_only_cancelled_or_closed(
    chromium: Any, tmp_path: Path
) -> None:
    """In a tutorial's picture, a terminal whose program both publishes and consumes is drawn as one box. After the
    program's consumer is cancelled or closed, the box shows the terminal's name and, below it, only "cancelled or
    closed". The word "publisher" is left out, because the text would otherwise be truncated.
    """
    records = of_rpc()
    (topology,) = [each for each in records if each["kind"] == "topology"]
    records.insert(3, {"kind": "goes_on", "t": 0, "n": 10})
    page = recorded(chromium, tmp_path, [*records, {**topology, "t": 5000, "consumers": []}, *published(8000, 7)])
    seek(page, 0.6)
    assert page.ask("return document.querySelector('[data-name=server] .line').textContent") == "cancelled or closed"


def arrows_behind(page: Page) -> list[str]:
    """Return the arrows that run behind a box that they do not belong to."""
    found: list[str] = page.ask(
        """
        const boxes = [...document.querySelectorAll(".node")];
        return [...document.querySelectorAll(".arrow")].flatMap(({ dataset: { from, to }, lastChild: path }) => {
          const length = path.getTotalLength();
          const points = Array.from({ length: 101 }, (_, index) =>
            path.getPointAtLength((length * index) / 100).matrixTransform(path.getScreenCTM()));
          return boxes.filter((node) => node.dataset.id !== from && node.dataset.id !== to).flatMap((node) => {
            const { left, right, top, bottom } = node.querySelector(".box").getBoundingClientRect();
            const isBehind = ({ x, y }) => left < x && x < right && top < y && y < bottom;
            return points.some(isBehind) ? [`${from} to ${to}, behind ${node.dataset.name}`] : [];
          });
        });
        """
    )
    return found


def test_no_arrow_of_an_rpc_tutorial_runs_behind_a_box_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    """If the window is 390 pixels wide, no arrow in the picture of an RPC tutorial runs behind the box of a client,
    exchange or queue. This includes the arrow from the server back to the exchange, and the one from the reply queue to
    the client.
    """
    page = recorded(chromium, tmp_path, of_rpc())
    page.resize(390)
    page.until(lambda: page.ask("return innerWidth") == 390, "the window")
    seek(page, 0.4)
    assert len(page.find(".arrow")) == 6
    assert arrows_behind(page) == []


#: The pairs of arrows that cross. Arrows that begin or end at the same box may join there.
_CROSSING = """
const arrows = [...document.querySelectorAll(".arrow")].map(({ dataset: { from, to }, lastChild: path }) => {
  const length = path.getTotalLength();
  return { from, to, points: Array.from({ length: 101 }, (_, index) => path.getPointAtLength((length * index) / 100)) };
});
const side = (a, b, c) => Math.sign((b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x));
const cross = (a, b, c, d) => side(a, b, c) * side(a, b, d) < 0 && side(c, d, a) * side(c, d, b) < 0;
const found = [];
arrows.forEach((one, index) => arrows.slice(0, index).forEach((other) => {
  if (one.from === other.from || one.to === other.to) return;
  const { points: a } = one, { points: b } = other;
  for (let i = 1; i < a.length; i += 1) for (let k = 1; k < b.length; k += 1)
    if (cross(a[i - 1], a[i], b[k - 1], b[k])) return found.push(`${one.from} ${one.to} / ${other.from} ${other.to}`);
}));
return found;
"""


@pytest.mark.parametrize("width", [768, 390])
def test_two_reply_queues_of_an_rpc_client_have_different_names_and_no_arrows_cross(
    chromium: Any, tmp_path: Path, width: int
) -> None:
    """If an RPC client of a tutorial is started again while the picture still shows its first reply queue, the second
    reply queue gets a number: for a client named "boss", it is called "boss's queue 2". In a window that is 768 or 390
    pixels wide, no arrow crosses another one.
    """
    records = of_rpc()
    topology = next(each for each in records if each["kind"] == "topology")
    again = REPLIES[:-1] + "2"
    topology["queues"].append({**topology["queues"][1], "name": again})
    topology["links"].append({**topology["links"][1], "to": again})
    client = topology["consumers"][1]
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seek(page, 0.4)
    assert page.ask(_CROSSING) == []
    topology["consumers"].append({**client, "name": "10.0.0.7:50003 -> 10.0.0.1:5672 (1)/tag", "queue": again})
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seek(page, 0.4)
    assert names(page)[1] == {"jobs", "boss's queue", "boss's queue 2"}
    assert page.ask(_CROSSING) == []
    assert page.ask("return Math.min(...[...document.querySelectorAll('.arrow path')].map((e) => e.getBBox().x))") > 2
    assert arrows_behind(page) == []


def test_with_two_consumers_no_arrow_runs_behind_a_box_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    """If the picture of a tutorial has two consumers, of which the first publishes replies, and the window is 390
    pixels wide, no arrow runs behind the box of a client, exchange or queue, and none leaves the picture.
    """
    records = of_rpc()
    topology = next(each for each in records if each["kind"] == "topology")
    topology["consumers"].append({**topology["consumers"][0], "name": "other/tag", "label": "other", "queue": REPLIES})
    page = recorded(chromium, tmp_path, records)
    page.resize(390)
    page.until(lambda: page.ask("return innerWidth") == 390, "the window")
    seek(page, 0.4)
    assert len(page.find(".node.c")) == 2
    assert arrows_behind(page) == []
    assert page.ask(
        "const edge = document.querySelector('#picture').getBoundingClientRect().right;"
        "return [...document.querySelectorAll('.arrow path')].every((e) => e.getBoundingClientRect().right <= edge)"
    )


def test_the_text_beside_a_moving_message_is_not_cut_at_the_edge_of_the_picture(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, the text beside a moving message is never cut off at the edge of the picture, whether
    the window is 390 or 1280 pixels wide.
    """
    page = recorded(chromium, tmp_path, of_rpc())
    for width in (390, 1280):
        page.resize(width)
        page.until(lambda: page.ask("return innerWidth") == width, "the window")  # noqa: B023
        seen = 0
        for step in range(40):
            seek(page, 0.2 + step / 80)
            labels, outside = page.ask(
                """
                const frame = document.querySelector("#picture").getBoundingClientRect();
                const labels = [...document.querySelectorAll(".dot.moving text")].filter((e) => e.textContent);
                return [labels.length, labels.map((each) => each.getBoundingClientRect()).filter((each) =>
                  each.left < frame.left || each.right > frame.right || each.bottom > frame.bottom).length];
                """
            )
            seen += labels
            assert outside == 0, (width, step)
        assert seen > 4


def test_the_clients_of_a_scene_stay_until_the_next_scene_begins(chromium: Any, tmp_path: Path) -> None:
    """In the picture of a tutorial, publishers and consumers whose programs have ended stay until the commands of the
    next scene begin, so that a viewer sees them while reading the next scene's text.
    """
    records = play()
    later = next(each for each in records if each.get("kind") == "scene" and each["number"] == 2)["t"]
    topology = next(each for each in records if each["kind"] == "topology")
    gone = {**topology, "t": 3000, "consumers": []}
    records = sorted([*records, gone], key=lambda each: each["t"])
    page = recorded(chromium, tmp_path, records)
    end = records[-1]["t"] + 4000
    seek(page, (later - 100) / end)
    assert names(page)[0] == {"boss", "worker 1"}
    assert page.nodes()["consumer worker 1"] == "cancelled or closed"
    seek(page, (later + 1000) / end)
    assert names(page)[0] == set()


def test_a_recording_ends_only_when_no_message_moves_any_more(chromium: Any, tmp_path: Path) -> None:
    """At the end of a recording of `mqtool ui`, no message is still moving, even if a worker with prefetch 1 received
    many messages in the recording's last moment.
    """
    records = jobs([{"name": "one/tag", "label": "worker 1"}])
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
    for number in range(24):
        records += [*published(1000, number), happens(1000, "delivered", number, **to)]
        records.append(happens(1000, "acknowledged", number))
    page = recorded(chromium, tmp_path, records)
    seek(page, 1)
    assert page.dots("moving") == []
    assert page.nodes()["quorum queue jobs"] == "0 ready · 0 unacked"


def of_terminal(t: int, n: int, kind: str, terminal: str = "boss") -> dict[str, Any]:
    """The record that the program in a terminal begins ("typed") or ends ("finished")."""
    return {"t": t, "n": n, "kind": kind, "terminal": terminal, "line": "mqtool send -l"}


@pytest.mark.parametrize("place", ["a tutorial", "mqtool ui"])
def test_an_idle_publisher_stays_in_the_picture_until_it_ends(chromium: Any, tmp_path: Path, place: str) -> None:
    """A publisher that is idle for a few seconds stays in the picture of `mqtool ui` until its channel is closed. In
    the picture of a tutorial, it stays until the program that publishes has ended.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    moved = {"kind": "moved", "queues": {}, "taken": []}
    ending = {
        "a tutorial": [of_terminal(900, 20, "typed"), of_terminal(9000, 21, "finished")],
        "mqtool ui": [{**moved, "t": 1200, "published": [["boss", "", 1]]}, {**moved, "t": 9000, "published": []}],
    }
    later = [*published(14_000, 1)]
    later[0]["from"] = {"client": "another"}
    records = [*(begins if place == "a tutorial" else []), *jobs(), *published(1000, 0), *ending[place], *later]
    page = recorded(chromium, tmp_path, records)
    for at in (2000, 5000, 8900, 10_900, 11_500):
        seek(page, at / 18_000)
        assert ("publisher boss" in page.nodes()) == (at < 11_000), at


def test_a_consumer_whose_program_ended_before_the_page_asked_for_consumers_is_shown_as_closed(
    chromium: Any, tmp_path: Path
) -> None:
    """In a tutorial's picture, once a consumer's program has ended, the consumer's box says "cancelled or closed", even
    if the program ended before the page asked the broker for a list of consumers.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    goes_on = {"kind": "goes_on", "t": 800, "n": 20, "number": 1}
    to = {"client": "worker 1", "connection": "10.0.0.7:50001 -> 10.0.0.1:5672", "protocol": "AMQP 0-9-1"}
    got = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": to}
    records = [*begins, *jobs(), goes_on, of_terminal(900, 21, "typed", "worker 1"), *published(1000, 0)]
    records += [happens(1001, "delivered", 0, **got), happens(1002, "acknowledged", 0)]
    records += [of_terminal(4000, 22, "finished", "worker 1"), {"kind": "now", "t": 8000}]
    page = recorded(chromium, tmp_path, records)
    seek(page, 0.4)
    assert page.nodes()["consumer worker 1"] == "consumer"
    seek(page, 1)
    assert page.nodes()["consumer worker 1"] == "cancelled or closed"


@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "not yet listed"])
def test_a_worker_is_drawn_only_after_the_messages_that_were_there_before_it(
    chromium: Any, tmp_path: Path, is_listed: bool
) -> None:
    """If a worker begins to consume from a queue that already has a message, a tutorial's picture first draws the
    message in the queue and then the worker. That is the case even if the picture is still moving the message to the
    queue.
    """
    worker = {"name": "one/tag", "label": "worker 1"}
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    listed = [each for each in jobs([worker], t=1300) if each["kind"] == "topology" and is_listed]
    to = {"client": "worker 1", "connection": "10.0.0.7:50001 -> 10.0.0.1:5672", "protocol": "AMQP 0-9-1"}
    got = happens(1310, "delivered", 0, consumer="one/tag", no_ack=False, redelivered=False, to=to)
    records = [*begins, *jobs(), *published(1000, 0), *listed, got, {"kind": "now", "t": 6000}]
    page = recorded(chromium, tmp_path, records)
    waits = 0
    for step in range(100):
        seek(page, step / 100)
        assert differences(page) == []
        is_waiting = page.dots("resting") == [("ready", "q:jobs")]
        waits += is_waiting
        if waits < 3:
            assert consumers(page) == [], step
    assert (waits >= 3, consumers(page)) == (True, ["worker 1"])


def test_two_clients_with_the_same_name_are_two_boxes(chromium: Any, tmp_path: Path) -> None:
    """If two clients with the same name are connected at the same time, the picture of `mqtool ui` shows two boxes."""
    records = reconnecting("Pika Python Client Library")
    records[-1]["consumers"] += next(each for each in records if each["kind"] == "topology")["consumers"]
    page = recorded(chromium, tmp_path, records)
    seek(page, 1)
    assert consumers(page) == ["Pika Python Client Library"] * 2


@pytest.mark.parametrize(
    ("kind", "key", "seen"),
    [
        ("topic", "kern.info", "kern.info"),
        ("topic", "..", "“..”"),
        ("headers", "kern.info", "format=pdf, pages=3"),
        ("fanout", "kern.info", ""),
        ("", "kern.info", ""),
    ],
    ids=["topic", "no letters", "headers", "fanout", "default"],
)
def test_a_moving_message_has_its_routing_key_or_headers_beside_it(
    chromium: Any, tmp_path: Path, kind: str, key: str, seen: str
) -> None:
    """While a message moves from a topic exchange to a queue, the picture of `mqtool ui` shows the message's routing
    key beside it, in quotes if the key has no letters or digits. If the message comes from a headers exchange, the
    picture shows the message's headers instead. If it comes from a fanout exchange or the default exchange, the
    picture shows no text.
    """
    name = "logs" if kind else ""
    records = [*jobs(), *published(1000, 0)]
    records[1]["exchanges"].append({"name": "logs", "type": kind, "alternate": None})
    records[1]["links"].append({**records[1]["links"][0], "from": "logs"})
    sent = next(each for each in records if each.get("what") == "published")
    sent["paths"] = [[name, "jobs"]]
    sent["details"] |= {"exchange": name, "routing_key": key, "headers": {"format": "pdf", "pages": 3}}
    page = recorded(chromium, tmp_path, records)
    texts = []
    for step in range(1, 20):
        seek(page, 0.2 + step / 60)
        texts += page.ask("return [...document.querySelectorAll('.dot.moving text')].map((e) => e.textContent)")
    assert set(texts) <= {seen, ""}
    assert texts.count(seen) >= len(texts) / 2


@pytest.mark.parametrize("width", [1280, 768, 390], ids="{} pixels".format)
def test_the_labels_of_moving_messages_and_of_bindings_do_not_overlap(
    chromium: Any, tmp_path: Path, width: int
) -> None:
    """While messages move through an exchange to three queues in the picture of `mqtool ui`, the routing key beside a
    message covers neither a binding's key, nor the name of a client, exchange or queue, nor another message's routing
    key. A binding's key does not cover the line of another binding.
    """
    records = [*jobs(), *published(1000, 0)]
    (queue,), (link,) = records[1]["queues"], records[1]["links"]
    bindings = {"all": ["#"], "kernel": ["kern.*"], "critical": ["kern.*", "*.critical"]}
    records[1] |= {
        "exchanges": [{"name": "logs", "type": "topic", "alternate": None}],
        "queues": [{**queue, "name": name} for name in bindings],
        "links": [{**link, "from": "logs", "to": name, "keys": keys} for name, keys in bindings.items()],
    }
    sent = next(each for each in records if each.get("what") == "published")
    sent["paths"] = [["logs", name] for name in bindings]
    sent["details"] |= {"exchange": "logs", "routing_key": "anonymous.info"}
    (ready,) = (each for each in records if each.get("what") == "ready")
    records.remove(ready)
    records += [{**ready, "queue": name, "copy": copy} for copy, name in enumerate(bindings)]
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seen = 0
    for step in range(40):
        seek(page, 0.2 + step / 120)
        seen += "anonymous.info" in page.ask("return document.querySelector('#picture').textContent")
        assert page.ask(OVERLAPPING) == [], step
    assert seen > 8


@pytest.mark.parametrize("passes_exchange", [False, True], ids=["stream protocol", "default exchange"])
def test_an_exchange_before_a_stream_is_drawn_only_if_messages_pass_through_it(
    chromium: Any, tmp_path: Path, passes_exchange: bool
) -> None:
    """If messages are published to a stream over the stream protocol, which has no exchanges, the picture of `mqtool
    ui` draws no exchange. If messages are published through the default exchange, the picture draws this exchange.
    """
    records = jobs([{"name": "one/tag", "label": "reader"}])
    records[1]["queues"][0]["type"] = "stream"
    event, end = published(1000, 0)
    event["paths"] = [["", "jobs"] if passes_exchange else ["jobs"]]
    page = recorded(chromium, tmp_path, [*records, event, {**end, "what": "appended"}])
    stream = {"publisher boss", "stream jobs", "consumer reader"}
    seek(page, 0)
    assert set(page.nodes()) == stream - {"publisher boss"}
    seek(page, 0.3)
    assert set(page.nodes()) == stream | ({"exchange (default exchange)"} if passes_exchange else set())
    arrows = page.ask("return [...document.querySelectorAll('.arrow')].map((e) => [e.dataset.from, e.dataset.to])")
    into = [start for start, end in arrows if end == "q:jobs"]
    assert into == (["x:"] if passes_exchange else ["p:boss"])
    seek(page, 1)
    assert page.dots() == [("stream", "q:jobs")]


def moving_labels(page: Page, steps: int) -> set[str]:
    """Return the labels that moving messages have at any of this many moments of the recording."""
    texts = set()
    for step in range(steps):
        seek(page, step / steps)
        texts |= set(page.ask("return [...document.querySelectorAll('.dot.moving text')].map((e) => e.textContent)"))
    return texts - {""}


def test_a_lost_message_of_a_tutorial_has_its_body_beside_it(chromium: Any, tmp_path: Path) -> None:
    """If a restart of the broker loses one of two messages, a tutorial's picture marks the lost message, and shows the
    message's body beside the mark.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs(), *published(1000, 0, "in pencil"), *published(1000, 1, "in ink")]
    lost = {"kind": "moved", "t": 4000, "queues": {"jobs": [1, 0, 2]}, "taken": [], "published": []}
    page = recorded(chromium, tmp_path, [*records, lost, {"kind": "now", "t": 8000}])
    seen = set()
    for step in range(80):
        seek(page, step / 80)
        seen |= set(page.ask("return [...document.querySelectorAll('.dot.ended text')].map((e) => e.textContent)"))
    assert seen == {"in pencil"}


def test_a_moving_message_of_a_tutorial_has_its_body_beside_it(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, a message that moves through the default exchange has its body beside it, and a moving
    acknowledgement has the word "ack" beside it. While more than six messages move at the same time, no text is shown
    beside any of them.
    """
    assert moving_labels(recorded(chromium, tmp_path, play()), 80) == {"first", "second", "ack"}
    many = [event for number in range(2, 40) for event in published(12_000, number, f"task {number}")]
    page = recorded(chromium, tmp_path, [*play(), *many, {"kind": "now", "t": 20_000}])
    page.ask("document.querySelector('#time').step = 'any'")
    for step in range(60):
        seek(page, 0.5 + step / 240)
        if len(page.find("#picture .dot.moving")) > 6:
            assert not page.ask("return [...document.querySelectorAll('.dot.moving text')].some((e) => e.textContent)")


@pytest.mark.parametrize(
    ("keys", "seen"), [(["mail"], {"Tea is ready."}), (["mail", "fax"], {"mail"})], ids=["one", "two"]
)
def test_a_message_of_a_tutorial_has_its_body_beside_it_if_all_bindings_have_the_same_key(
    chromium: Any, tmp_path: Path, keys: list[str], seen: set[str]
) -> None:
    """While messages move through an exchange whose bindings all have the same key, a tutorial's picture shows each
    message's body beside it, because the routing keys would all be the same. If the bindings have different keys, the
    picture shows the routing key instead of the body.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*jobs(), *published(1000, 0, "Tea is ready.")]
    records[1]["exchanges"] = [{"name": "letters", "type": "direct", "alternate": None}]
    records[1]["links"] = [{**records[1]["links"][0], "from": "letters", "keys": keys}]
    sent = next(each for each in records if each.get("what") == "published")
    sent["paths"] = [["letters", "jobs"]]
    sent["details"] |= {"exchange": "letters", "routing_key": "mail"}
    page = recorded(chromium, tmp_path, [*begins, *records, {"kind": "now", "t": 3000}])
    assert moving_labels(page, 60) == seen


def test_the_label_of_a_moving_message_does_not_cover_the_messages_in_a_queue(chromium: Any, tmp_path: Path) -> None:
    """In the picture of `mqtool ui` on a phone, the label of a message that moves to its consumer does not cover the
    messages that wait in the queue above the consumer.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs([{"name": "one/tag", "label": "worker 1"}])]
    records += [event for number in range(9) for event in published(1000, number, f"task {number}")]
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
    page = recorded(chromium, tmp_path, [*records, happens(6000, "delivered", 0, **to), {"kind": "now", "t": 8000}])
    page.resize(390)
    seen = 0
    for step in range(30):
        seek(page, 0.5 + step / 200)
        labels, waiting = page.ask(
            """
            const box = (each) => each.getBoundingClientRect();
            const labels = [...document.querySelectorAll(".dot.unacknowledged.moving text")];
            const waiting = [...document.querySelectorAll('.dot.resting[data-node="q:jobs"] path')].map(box);
            const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top < a.bottom - 2;
            return [labels.length, labels.map(box).filter((each) => waiting.some((dot) => meet(each, dot))).length];
            """
        )
        seen += labels
        assert not waiting, step
    assert seen > 3


#: The labels of moving messages at 120 moments, each with the state of its message, and those that cover a box.
_LABELS_OVER_BOXES = """
const done = arguments[0], time = document.querySelector("#time"), labels = new Set(), over = [];
const box = (each) => each.getBoundingClientRect();
const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
let step = 0;
const look = () => {
  for (const label of document.querySelectorAll(".dot.moving text")) {
    if (!label.textContent) continue;
    const { fate } = label.parentElement.dataset;
    labels.add(`${fate} ${label.textContent}`);
    for (const each of document.querySelectorAll(".node .box")) {
      if (meet(box(label), box(each))) over.push([step, fate, each.parentElement.dataset.id]);
    }
  }
  if (step++ === 120) return done([[...labels].sort(), over]);
  Object.assign(time, { step: "any", value: (step / 120) * 1000 });
  time.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => requestAnimationFrame(look));
};
look();
"""


def test_the_label_of_a_moving_message_covers_no_box(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, a moving message has the start of its body beside it as a label. The label covers no box
    of a client, exchange or queue, even while the message moves back to its queue.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs([{"name": "one/tag", "label": "worker 1"}]), *published(1000, 0, "warning: it is late")]
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
    records += [happens(1000, "delivered", 0, **to), happens(4000, "requeued", 0, why="rejected")]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 6000}])
    labels, over = page.driver.execute_async_script(_LABELS_OVER_BOXES)
    assert labels == [f"{fate} warning: it i…" for fate in ("ready", "requeued", "unacknowledged")]
    assert over == []


def test_the_headers_of_a_message_that_moves_to_its_exchange_cover_no_box(chromium: Any, tmp_path: Path) -> None:
    """In the tutorial on headers, an unroutable message moves to its exchange and returns to its publisher. In the
    picture, the message's two headers, which are shown beside it, cover neither the publisher's box nor the exchange's
    box.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs()]
    records[len(begins) + 1]["exchanges"].append({"name": "reports", "type": "headers", "alternate": None})
    sent, _ = published(1000, 0)
    headers = {"format": "zip", "type": "report"}
    sent |= {"paths": [], "details": {**sent["details"], "exchange": "reports", "headers": headers}}
    records += [sent, {"kind": "event", "t": 1001, "message": 0, "what": "returned"}]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 4000}])
    labels, over = page.driver.execute_async_script(_LABELS_OVER_BOXES)
    assert labels == [f"{fate} format=zip, type=report" for fate in ("ready", "returned")]
    assert over == []


def test_an_acknowledgement_moves_from_the_consumer_to_the_queue(chromium: Any, tmp_path: Path) -> None:
    """If a consumer acknowledges a message, the picture of a tutorial moves a tick with the word "ack" from the
    consumer to the message's queue. While the tick moves, the queue no longer counts the message.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = [*begins, *jobs([{"name": "one/tag", "label": "worker 1"}]), *published(1000, 0, "first")]
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}
    records += [happens(1000, "delivered", 0, **to), happens(4000, "acknowledged", 0)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 6000}])
    ways, words = [], set()
    for step in range(120):
        seek(page, step / 120)
        assert differences(page) == [], step
        if found := places(page, "acknowledged"):
            ways += found
            words |= set(page.ask(
                "return [...document.querySelectorAll('.dot.acknowledged text')].map((e) => e.textContent)"
            ))  # fmt: skip
    assert len(ways) > 5
    assert all(after < before + 1 for (before, _), (after, _) in itertools.pairwise(ways))
    queue, consumer = box(page, ".node.q .box"), box(page, ".node.c .box")
    assert consumer["left"] - 40 < ways[0][0] <= consumer["left"]
    assert queue["right"] - 10 <= ways[-1][0] < queue["right"] + 40
    assert words == {"ack"}


def of_confirms(count: int = 1, **fields: object) -> list[dict[str, Any]]:
    """The records of a play in which boss publishes a message, which is confirmed together with others."""
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    ends = {"client": "boss", "connection": "10.0.0.7:50001 -> 10.0.0.1:5672", "protocol": "AMQP 0-9-1"}
    records = [*begins, *jobs(), *published(1000, 0)]
    confirmed = {"kind": "event", "t": 1001, "what": "confirmed", "messages": [0], "count": count, "nack": False}
    return [*records, {**confirmed, "from": ends, **fields}, {"kind": "now", "t": 6000}]


@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize(
    ("count", "nack", "label"),
    [(1, False, "confirmed confirm"), (5, False, "confirmed confirm of 5"), (1, True, "dead nack")],
    ids=["one", "several", "nack"],
)
def test_a_confirm_moves_to_the_publisher_after_its_message_has_arrived(
    chromium: Any, tmp_path: Path, width: int, count: int, nack: bool, label: str
) -> None:
    """If the broker confirms a message, the picture of a tutorial moves a small tick with the word "confirm" from the
    exchange to the publisher, once the message has arrived in its queue. The label of a confirm for five messages is
    "confirm of 5", and the label of a negative acknowledgement is "nack". No label covers a box, and no queue counts
    a confirm as a message.
    """
    page = recorded(chromium, tmp_path, of_confirms(count, nack=nack))
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    labels, over = page.driver.execute_async_script(_LABELS_OVER_BOXES)
    assert labels == sorted(["ready x", label])
    assert over == []
    fate = label.partition(" ")[0]
    seen = 0
    for step in range(60):
        seek(page, 0.1 + step / 100)
        assert differences(page) == []
        if (fate, "p:boss") in page.dots("moving"):
            seen += 1
            assert page.dots("resting") == [("ready", "q:jobs")]
    assert seen > 3
    page.until(lambda: f"boss gets a {'nack' if nack else 'confirm'} for " in page.said(), "the sentence")


def order(page: Page) -> list[tuple[str, str]]:
    """Return the messages and confirms that move in a recording, by state and destination, each once and in order."""
    found = dict[tuple[str, str], None]()
    for step in range(150):
        seek(page, step / 150)
        found |= dict.fromkeys(page.dots("moving"))
    return [*found]


def test_the_picture_continues_after_an_event_that_the_page_does_not_know(chromium: Any, tmp_path: Path) -> None:
    """If a newer broker reports an event that the page of `mqtool ui` does not know, and that belongs to no queue,
    the page lists the event under its name, and still shows later messages.
    """
    unknown = {"kind": "event", "t": 1000, "what": "throttled", "from": {"client": "boss"}}
    page = recorded(chromium, tmp_path, [*jobs(), unknown, *published(2000, 0), {"kind": "now", "t": 4000}])
    seek(page, 1)
    assert page.dots() == [("ready", "q:jobs")]
    page.until(lambda: "throttled" in page.said(), "the event")


def test_confirms_at_the_same_time_are_drawn_one_after_the_other(chromium: Any, tmp_path: Path) -> None:
    """If many messages are confirmed in the same millisecond, a tutorial's picture draws their confirms leaving the
    exchange one after the other, most of them without a label. It draws no confirm for a message that it has not drawn.
    """
    records = of_confirms()[:-2]
    confirmed = of_confirms()[-2]
    for number in range(1, 40):
        records += [*published(1001, number), {**confirmed, "t": 1002, "messages": [number]}]
    records += [{**confirmed, "t": 1002, "messages": [number]} for number in range(100, 140)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 12_000}])
    most, labels, labelled = 0, 0, "return [...document.querySelectorAll('.confirmed text')].map((e) => e.textContent)"
    for step in range(100):
        seek(page, step / 100)
        most = max(most, len(places(page, "confirmed")))
        labels = max(labels, len([each for each in page.ask(labelled) if each]))
    assert 2 < most < 15
    assert labels < 4


def test_the_confirm_of_a_dropped_message_moves_after_the_message_has_been_drawn_as_dropped(
    chromium: Any, tmp_path: Path
) -> None:
    """If a message passes through two exchanges and is dropped at the second one because no queue is bound to it, the
    picture of `mqtool ui` first shows that the message is dropped, and only then moves the confirm to the publisher.
    """
    records, confirmed = jobs(), of_confirms()[-2]
    records[1]["exchanges"] = [{"name": name, "type": "fanout", "alternate": None} for name in ("logs", "archive")]
    (link,) = records[1]["links"]
    records[1]["links"] = [{**link, "from": "logs", "to": "archive", "toExchange": True, "keys": [""]}]
    sent, _ = published(1000, 0)
    sent |= {"paths": [], "details": {**sent["details"], "exchange": "logs"}}
    records += [sent, {"kind": "event", "t": 1000, "what": "dropped", "message": 0}, confirmed]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 4000}])
    assert order(page)[:3] == [("ready", "x:logs"), ("ready", "x:archive"), ("dropped", "x:archive")]
    assert order(page)[3:] == [("confirmed", "p:boss")]


def test_a_confirm_is_drawn_without_delay_after_next_has_been_pressed(chromium: Any, tmp_path: Path) -> None:
    """If a viewer of a tutorial presses Next while 40 messages are still moving to their queue, the picture ends
    their movement immediately. It then draws the broker's confirm of the last message without delay, and therefore
    before an error that another client gets half a second after the confirm.
    """
    records = [each for each in play() if each["t"] < 7100]
    (goes_on,) = [each for each in play() if each["kind"] == "goes_on" and each["number"] == 2]
    for number in range(1, 41):
        records += published(7050, number)
    records += [goes_on, {**of_confirms()[-2], "t": 7110, "messages": [40]}]
    error = {"kind": "event", "t": 7610, "what": "unknown-address", "from": {"client": "worker 2"}}
    records += [{**error, "address": "/queues/nowhere"}, {"kind": "now", "t": 12_000}]
    page = recorded(chromium, tmp_path, records)
    assert order(page)[-2:] == [("confirmed", "p:boss"), ("returned", "p:worker 2")]


def test_the_picture_keeps_up_with_a_message_that_is_requeued_again_and_again(chromium: Any, tmp_path: Path) -> None:
    """If a consumer requeues the same message 300 times in 3 seconds, the picture of `mqtool ui` shows only some of
    these redeliveries. At most 15 seconds after the last of them, the picture has caught up, and shows the message in
    its queue.
    """
    records = [*jobs([{"name": "one/tag", "label": "worker 1"}]), *published(1000, 0)]
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": True, "to": None}
    for t in range(1000, 4000, 10):
        records += [happens(t, "delivered", 0, **to), happens(t, "requeued", 0, why="returned")]
    page = recorded(chromium, tmp_path, records)
    moved = 0
    for step in range(40):
        seek(page, step / 40)
        moved += len(page.dots("moving"))
        assert differences(page) == []
    seek(page, 1)
    assert page.dots() == [("requeued", "q:jobs")]
    assert moved > 20
    page.until(lambda: re.search(r"0:(\d\d) of 0:\1$", page.text("#where")), "the end")
    assert int(page.text("#where")[-2:]) <= 19


def test_a_confirm_after_a_restart_of_the_broker_is_not_drawn_for_an_earlier_message(
    chromium: Any, tmp_path: Path
) -> None:
    """After a restart, the broker numbers its messages from the beginning again. If it confirms a new message, a
    tutorial's picture does not draw this confirm for the message with the same number that was lost in the restart.
    """
    *records, now = of_confirms()
    (snapshot,) = [each for each in records if each["kind"] == "snapshot"]
    records += [{**snapshot, "t": 2400}, {**records[-1], "t": 2600}, now]
    page = recorded(chromium, tmp_path, records)
    waiting = []
    for step in range(60):
        seek(page, step / 60)
        if ("confirmed", "p:boss") in page.dots("moving"):
            waiting += [page.dots("resting")]
    assert waiting
    assert all(waiting)  # the restart has lost the message


def test_a_rate_is_not_measured_across_two_connections_of_a_publisher(chromium: Any, tmp_path: Path) -> None:
    """If a publisher closes its connection and later publishes over a new one, the picture of `mqtool ui` shows no rate
    after the first count of the new connection's messages. A rate is the difference between two counts, and counts of
    different connections cannot be compared.
    """
    records = [*jobs(), *published(1000, 0)]

    def counted(t: int, *counts: int) -> dict[str, Any]:
        published = [["boss", "", count] for count in counts]
        return {"kind": "moved", "t": t, "queues": {"jobs": [1, 0, 1]}, "taken": [], "published": published}

    records += [counted(2000, 0), counted(4000, 2000), counted(5000), counted(6000, 2400), {"kind": "now", "t": 6400}]
    page = recorded(chromium, tmp_path, records)
    seek(page, 4500 / 10_400)
    assert rates(page) == ["1,000/s"]
    seek(page, 6300 / 10_400)
    assert rates(page) == []


def test_a_tutorials_picture_shows_a_flow_of_messages_without_its_rate(chromium: Any, tmp_path: Path) -> None:
    """If many messages per second move along an arrow in a tutorial's picture, the arrow is dashed, and stays dashed
    until the commands of the next scene begin. The picture does not show the current rate, because it would differ from
    the rate of the whole run, which the tutorial itself measures.
    """
    records = play()
    for t, count in ((5000, 0), (6800, 3000)):
        at = next(index for index, each in enumerate(records) if each["t"] > t)
        counts = {"queues": {"jobs": [0, 0, count]}, "taken": [], "published": [["boss", "", count]]}
        records.insert(at, {"kind": "moved", "t": t, **counts})
    page = recorded(chromium, tmp_path, records)
    flows: dict[str, list[int]] = {}
    for step in range(130):
        seek(page, step / 130)
        assert rates(page) == []
        flows.setdefault(page.text("#scene"), []).append(len(page.find("#picture .flow")))
    assert flows["Scene 1"][-1] > 0
    assert set(flows["Scene 2"][1:]) == {0}


def test_a_message_moving_from_a_stream_to_a_consumer_has_its_offset_beside_it(chromium: Any, tmp_path: Path) -> None:
    """While messages move from a stream to a consumer, the picture of `mqtool ui` shows each message's offset beside
    it, even if the consumer receives several messages together. A viewer thus sees where each consumer starts.
    """
    records = jobs([{"name": "one/tag", "label": "third"}])
    records[1]["queues"][0]["type"] = "stream"
    for number in range(2):
        sent, ready = published(1000, number)
        records += [sent, {**ready, "what": "appended"}]
    records += [happens(4000, "read", number, consumer="one/tag", offset=1, to=None) for number in range(2)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}])
    assert moving_labels(page, 80) == {"offset 0", "offset 1"}


def test_messages_of_a_stream_that_is_read_from_the_start_are_drawn_from_offset_0_on(
    chromium: Any, tmp_path: Path
) -> None:
    """If a consumer reads a stream of twenty messages from the start, the picture of `mqtool ui` first moves the
    message at offset 0 to the consumer, although the stream's box shows only the last ten messages. While messages
    move, the consumer's box shows the offset of the latest message that has arrived. At the end, it shows the last
    offset that the broker has reported.
    """
    records = jobs([{"name": "one/tag", "label": "third"}])
    records[1]["queues"][0]["type"] = "stream"
    for number in range(20):
        sent, ready = published(1000, number)
        records += [sent, {**ready, "what": "appended"}]
    records += [happens(8000, "read", number, consumer="one/tag", offset=99, to=None) for number in range(20)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 12_000}])
    seen: list[str] = []
    lines: list[str] = []
    for step in range(60):
        seek(page, 0.65 + step / 300)
        lines.append(page.nodes()["consumer third"])
        seen += page.ask("return [...document.querySelectorAll('.dot.stream.moving text')].map((e) => e.textContent)")
        assert differences(page) == []
    assert next(each for each in seen if each) == "offset 0"
    assert "offset 1" in seen
    seek(page, 1)
    told = [int(each.removeprefix("at offset ")) for each in lines if each.startswith("at offset ")]
    assert told == sorted(told)
    assert (told[0] < 5, page.nodes()["consumer third"]) == (True, "at offset 99")


def test_a_request_and_its_reply_have_the_same_correlation_id_beside_them(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, each moving RPC request or reply has its body and the beginning of its correlation ID
    beside it, so that a viewer sees which request a reply answers.
    """
    records = of_rpc()
    for each in records:
        if each.get("what") == "published":
            each["details"]["properties"]["correlation_id"] = "23c3e3a1-7e5b-4b0e-a1d6-0c2f6b7b0a11"
    labels = moving_labels(recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}]), 120)
    assert labels == {"fib(6) · id 23c3", "8 · id 23c3", "ack"}


def test_the_label_of_a_reply_covers_no_box(chromium: Any, tmp_path: Path) -> None:
    """In a tutorial's picture, the reply of an RPC server moves below the queues to the exchange, with its body and its
    correlation ID beside it. This text covers no part of the box of a client, exchange or queue.
    """
    records = of_rpc()
    for each in records:
        if each.get("what") == "published":
            each["details"]["properties"]["correlation_id"] = "23c3e3a1-7e5b-4b0e-a1d6-0c2f6b7b0a11"
            each["details"]["body"] = each["details"]["body"].removeprefix("fib(").removesuffix(")")
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}])
    labels, over = page.driver.execute_async_script(_LABELS_OVER_BOXES)
    assert "ready 8 · id 23c3" in labels
    assert over == []


@pytest.mark.parametrize("width", [768, 390])
def test_the_label_of_a_long_reply_covers_no_box_in_a_narrow_window(chromium: Any, tmp_path: Path, width: int) -> None:
    """In the picture of an RPC tutorial, each client, server, exchange and queue is a box. In a window that is as
    narrow as on a tablet or a phone (768 or 390 pixels), the label of a moving reply covers no part of a box, even if
    the label is long. This is true on the reply's way from the server to the reply queue, and on its way from this
    queue to the client.
    """
    records = of_rpc()
    for each in records:
        if each.get("what") == "published":
            each["details"]["properties"]["correlation_id"] = "23c3e3a1-7e5b-4b0e-a1d6-0c2f6b7b0a11"
            if each["message"] == 1:
                each["details"]["body"] = "the request 'ten' is not an integer"
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}])
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    labels, over = page.driver.execute_async_script(_LABELS_OVER_BOXES)
    assert {"ready the request '… · id 23c3", "acknowledged the request '… · id 23c3"} <= set(labels)
    assert over == []


def of_offsets() -> list[dict[str, Any]]:
    """The records of a reader of a stream that stores two offsets, and of another client that resets the offset."""
    to = {"client": "receiver", "connection": "10.0.0.7:50001 -> 10.0.0.1:5552", "protocol": "stream"}
    records = jobs([{"name": f"{to['connection']}/stream.subid-0", "label": "receiver", "prefetch": None}])
    records[1]["queues"][0]["type"] = "stream"
    for number in range(2):
        sent, ready = published(1000, number)
        records += [sent, {**ready, "what": "appended"}]
    reads = {"consumer": f"{to['connection']}/stream.subid-0", "to": to, "no_ack": True}
    records += [happens(2000, "read", number, offset=number, **reads) for number in range(2)]
    stored = {"kind": "event", "what": "stored", "queue": "jobs", "name": "reports", "from": to}
    records += [{**stored, "t": 2001, "offset": number} for number in range(2)]
    reset = {**stored, "t": 12_000, "offset": -1, "from": {**to, "client": "offsets"}}
    return [*records, reset, {"kind": "now", "t": 16_000}]


def test_an_offset_moves_to_the_stream_and_then_stays_below_it(chromium: Any, tmp_path: Path) -> None:
    """If a reader of a stream stores its offset, the picture of `mqtool ui` first shows the messages that move to the
    reader. It then moves the offset from the reader to the stream, and shows the offset with the reader's name below
    the stream. If the stored offset is reset, the text below the stream says that the reader has no offset.
    """
    page = recorded(chromium, tmp_path, of_offsets())
    seen: list[str] = []
    moved: list[tuple[str, str]] = []
    for step in range(160):
        seek(page, step / 160)
        note = page.ask("return document.querySelector('.node.q .note').textContent")
        moved += [each for each in drawn(page) if each[0] == "stored" and each not in moved]
        if not seen or seen[-1] != note:
            seen.append(note)
        if note:
            assert not page.ask("return [...document.querySelectorAll('.dot.stream.moving')].length")
    assert moved == [("stored", "q:jobs")]
    assert seen == ["", "reports: offset 0", "reports: offset 1", "reports: no offset"]
    assert page.nodes()["stream jobs"] == "2 messages · reports: no offset"
    page.find(".node.q")[0].click()
    page.until(lambda: "stored last" in page.text("#facts"), "the panel")


@pytest.mark.parametrize("width", [1280, 390])
def test_moving_messages_and_offsets_do_not_cover_the_stored_offset(chromium: Any, tmp_path: Path, width: int) -> None:
    """While messages move from a stream to its reader, and offsets move back to the stream, neither they nor their
    labels cover the stored offset that the picture of `mqtool ui` shows below the stream.
    """
    records = of_offsets()
    for each in records:
        if each.get("what") == "stored":
            each["name"] = "nightly-reports"
    reads = [{**each, "t": 6000, "copy": each["copy"] + 2} for each in records if each.get("what") == "read"]
    later = [event for number in (2, 3) for event in published(4000, number)]
    for event in later[1::2]:
        event["what"] = "appended"
    records[-2:-2] = [*later, *reads]
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    seen = 0
    for step in range(180):
        seek(page, 0.15 + step / 500)
        note, labels = page.ask(
            """
            const box = (each) => each.getBoundingClientRect().toJSON();
            const moving = [...document.querySelectorAll(".dot.moving :is(path, text)")];
            const drawn = moving.filter((each) => each.tagName === "path" || each.textContent);
            return [box(document.querySelector(".node.q .note")), drawn.map(box)];
            """
        )
        for label in labels if note["width"] else []:
            seen += 1
            is_beside = label["left"] >= note["right"] - 1 or label["right"] <= note["left"]
            assert is_beside or label["bottom"] <= note["top"] + 1 or label["top"] >= note["bottom"] - 1, step
    assert seen > 8


def test_a_command_that_looks_at_the_ends_of_a_stream_is_not_drawn_as_a_reader(chromium: Any, tmp_path: Path) -> None:
    """If a command only looks at the first and the last message of a stream, as `offset show` does, a tutorial's
    picture does not show the command as a reader of the stream, and moves no message to it.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = of_offsets()[:-2]
    look = "10.0.0.7:50001 -> 10.0.0.1:5552/stream.subid-255"
    for each in records:
        if each.get("what") == "read":
            each["consumer"] = look
    records[1]["consumers"][0]["name"] = look
    page = recorded(chromium, tmp_path, [*begins, *records, {"kind": "now", "t": 9000}])
    for step in range(60):
        seek(page, step / 60)
        assert not page.find(".node.c"), step
        assert not page.find('.dot.moving[data-node^="c:"]'), step
    assert "is read" not in page.said()


def test_the_offset_that_was_stored_last_is_shown_below_the_stream(chromium: Any, tmp_path: Path) -> None:
    """If a reader stores offsets more often than the broker reports them, the picture of `mqtool ui` shows, below the
    stream, the offset that was stored last.
    """
    records = of_offsets()[:-2]
    counted = {"kind": "moved", "t": 9000, "queues": {"jobs": [2, 0, 2]}, "taken": [], "published": []}
    page = recorded(chromium, tmp_path, [*records, {**counted, "stored": [["jobs", "reports", 1234]]}])
    seek(page, 1)
    assert page.nodes()["stream jobs"] == "2 messages · reports: offset 1,234"


def test_a_client_is_drawn_even_if_the_queue_to_which_it_publishes_does_not_exist(
    chromium: Any, tmp_path: Path
) -> None:
    """If an AMQP 1.0 client cannot publish to a queue because the queue does not exist, a tutorial's picture still
    shows the client, with an arrow to the default exchange. The message moves to this exchange and returns to the
    client, with the name of the missing queue beside it.
    """
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    records = jobs()
    records[1].update({"exchanges": [], "links": [], "queues": []})
    asks = {"from": {"client": "boss", "connection": "10.0.0.7:50001", "protocol": "AMQP 1-0"}}
    asks["address"] = "/queues/nowhere"
    refused = {"kind": "event", "t": 1000, "what": "unknown-address", **asks}
    page = recorded(chromium, tmp_path, [*begins, *records, refused, {"kind": "now", "t": 8000}])
    seek(page, 0.2)
    assert set(page.nodes()) == {"publisher boss", "exchange (default exchange)"}
    assert page.find('.arrow.publishes[data-from="p:boss"][data-to="x:"]')
    moving, labels = [], []
    for number in range(10, 40):
        seek(page, number / 80)
        moving += [fate for fate, _ in page.dots("moving")][:1]
        labels += [each.text for each in page.find(".dot.moving text") if each.text]
    assert list(dict.fromkeys(moving)) == ["ready", "returned"]
    assert list(dict.fromkeys(labels)) == ["to nowhere", "no queue nowhere"]
    assert page.dots() == []
    page.until(lambda: "boss cannot publish to “/queues/nowhere”" in page.said(), "the sentence")


def test_the_lines_of_a_terminal_are_in_order_after_a_jump_within_a_recording(chromium: Any, tmp_path: Path) -> None:
    """The page of a tutorial shows the terminals in which the tutorial's commands run. Even if a viewer jumps forward
    and back within the recording of a tutorial, and then to the end, each terminal shows everything in the order in
    which it happened: first the lines that a command printed, then ^C, then the next command.
    """
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": {"client": "worker 1"}}
    records = play([{"name": "one/tag", "label": "worker 1"}])[:-1]
    lines = []
    for number in range(3, 9):
        records += [*published(12_000, number), happens(12_000, "delivered", number, **to)]
        records.append(happens(12_000, "acknowledged", number))
        lines.append(f"[x] Done {number}")
    printed = [("printed", 12_000, line) for line in lines] + [("printed", 18_000, "^C"), ("typed", 19_000, "next")]
    records += [
        {"t": t, "kind": kind, "n": 60 + n, "terminal": "worker 1", "line": line}
        for n, (kind, t, line) in enumerate(printed)
    ]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 22_000}])
    for part in (0.5, 0.97, 0.2, 1):
        seek(page, part)
    page.until(lambda: "next" in page.text("#terminals"), "the last command")
    shown = page.ask("return [...document.querySelectorAll('.terminal pre')][1].textContent").splitlines()
    assert shown == [*lines, "^C", "$ next"]


def test_a_command_is_shown_below_what_the_previous_one_printed_in_the_same_millisecond(
    chromium: Any, tmp_path: Path
) -> None:
    """A command of a tutorial prints its last line and ends, and the next command is typed in the same terminal. Even
    if all this happens in the same millisecond, the page of the tutorial shows the line above the next command.
    """
    happened = [("typed", "first"), ("printed", "the output of first"), ("finished", ""), ("typed", "second")]
    records = play([])[:-1]
    records += [
        {"t": 12_000, "kind": kind, "n": 60 + n, "terminal": "worker 1", "line": line}
        for n, (kind, line) in enumerate(happened)
    ]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 13_000}])
    seek(page, 1)
    page.until(lambda: "second" in page.text("#terminals"), "the second command")
    shown = page.ask("return [...document.querySelectorAll('.terminal pre')][1].textContent").splitlines()
    assert shown == ["$ first", "the output of first", "$ second"]


@pytest.mark.parametrize("name", ["hello-python-stream", "delayed_logs.delayed", "WORKSHOPS.WM.illnesses.illicit"])
def test_the_name_of_a_queue_fits_into_its_outline(chromium: Any, tmp_path: Path, name: str) -> None:
    """In the picture of `mqtool ui`, the name of a queue does not cross the outline of the cylinder that stands for the
    queue.
    """
    records = json.loads(json.dumps(jobs()).replace('"jobs"', f'"{name}"'))
    page = recorded(chromium, tmp_path, records)
    page.until(lambda: page.find(".node.q .name")[0].text, "the name")
    left, right, start, end = page.ask(
        """
        const queue = document.querySelector(".node.q"), scale = queue.getScreenCTM().a;
        const box = queue.querySelector(".box").getBoundingClientRect();
        const name = queue.querySelector(".name").getBoundingClientRect();
        return [box.left + 16 * scale, box.right - 4 * scale, name.left, name.right];
        """
    )
    assert left <= start
    assert end <= right


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_the_name_of_an_exchange_fits_into_its_outline(chromium: Any, tmp_path: Path, width: int) -> None:
    """In the picture of `mqtool ui`, the name of an exchange is not cut off, and does not cross the sloping sides of
    the hexagon that stands for the exchange.
    """
    records = jobs()
    records[1]["exchanges"].append({"name": "delayed_logs.delayed", "type": "x-delayed-message", "alternate": None})
    page = recorded(chromium, tmp_path, records)
    page.resize(width)
    page.until(lambda: page.ask("return innerWidth") == width, "the window")
    seek(page, 1)
    name, corners = page.ask(
        """
        const exchange = document.querySelector('.node.x[data-name="delayed_logs.delayed"]');
        const box = exchange.querySelector(".box"), name = exchange.querySelector(".name");
        const { left, right, top, bottom } = name.getBoundingClientRect();
        const isInside = (x, y) => box.isPointInFill(new DOMPoint(x, y).matrixTransform(box.getScreenCTM().inverse()));
        return [name.textContent, [isInside(left, top + 3), isInside(right, top + 3), isInside(left, bottom)]];
        """
    )
    assert name == "delayed_logs.delayed"
    assert corners == [True] * 3


@pytest.mark.parametrize("width", [1280, 390])
def test_the_long_name_of_the_only_queue_is_not_cut(chromium: Any, tmp_path: Path, width: int) -> None:
    """If only one queue is declared and it has no consumers, the picture of `mqtool ui` shows the queue's whole name,
    even if the name is as long as `stream-offset-tracking-python` and the window is 390 pixels wide.
    """
    name = "stream-offset-tracking-python"
    page = recorded(chromium, tmp_path, json.loads(json.dumps(jobs()).replace('"jobs"', f'"{name}"')))
    page.resize(width)
    seek(page, 1)
    assert page.ask("return document.querySelector('.node.q .name').textContent") == name


@pytest.mark.parametrize("width", [768, 390])
def test_a_long_name_is_cut_to_fit_its_box(chromium: Any, tmp_path: Path, width: int) -> None:
    """If the name of a queue does not fit into the queue's box in the picture of `mqtool ui`, the picture shows as much
    of the name as fits. The tooltip of the box, and its label for screen readers, contain the whole name.
    """
    name = "stream-offset-tracking-python"
    readers = [{"name": f"{each}/tag", "label": f"reader {each}"} for each in range(2)]
    page = recorded(chromium, tmp_path, json.loads(json.dumps(jobs(readers)).replace('"jobs"', f'"{name}"')))
    page.resize(width)
    seek(page, 1)
    shown, needed, room = page.ask(
        """
        const text = document.querySelector(".node.q .name"), room = Number(text.getAttribute("textLength"));
        text.removeAttribute("textLength");
        return [text.textContent, text.getComputedTextLength(), room];
        """
    )
    assert name.startswith(shown.removesuffix("…"))
    assert room < needed <= room / 0.8 < needed * (len(shown) + 2) / len(shown)
    (queue,) = page.find(".node.q")
    assert name in queue.get_attribute("aria-label")
    assert name in page.ask("return document.querySelector('.node.q title').textContent")


def test_the_labels_of_messages_that_move_beside_each_other_do_not_overlap(chromium: Any, tmp_path: Path) -> None:
    """In the picture of `mqtool ui` on a phone, the labels of two messages that move side by side do not overlap,
    however long the labels are.
    """
    records = jobs()
    (queue,), (link,) = records[1]["queues"], records[1]["links"]
    records[1]["queues"].append({**queue, "name": "mail"})
    records[1]["exchanges"].append({"name": "logs", "type": "topic", "alternate": None})
    records[1]["links"] = [{**link, "from": "logs", "to": each} for each in ("jobs", "mail")]
    for number, (key, to) in enumerate({"kern.disk.full.again": "jobs", "kern.disk.full.now": "mail"}.items()):
        sent, ready = published(1000, number)
        sent |= {"paths": [["logs", to]], "details": {**sent["details"], "exchange": "logs", "routing_key": key}}
        sent["from"] = {"client": f"boss {number}"}
        records += [sent, {**ready, "queue": to}]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 4000}])
    page.resize(390)
    seen = 0
    for step in range(80):
        seek(page, 0.2 + step / 200)
        labels = page.ask(
            "return [...document.querySelectorAll('.dot.moving text')].filter((e) => e.textContent)"
            ".map((e) => e.getBoundingClientRect().toJSON())"
        )
        seen += len(labels)
        for one, other in itertools.combinations(labels, 2):
            apart = max(one["left"], other["left"]) - min(one["right"], other["right"])
            above = max(one["top"], other["top"]) - min(one["bottom"], other["bottom"])
            assert max(apart, above) > -4, step
    assert seen > 20


#: The labels of moving messages that cover another moving message.
_COVERING = """
const box = (each) => each.getBoundingClientRect();
const dots = [...document.querySelectorAll(".dot.moving")];
const covers = (a, b) => a.left + 1 < b.right && b.left < a.right - 1 && a.top + 3 < b.bottom && b.top < a.bottom - 3;
return dots.map((dot) => [dot, dot.querySelector("text")]).filter(([dot, text]) => text.textContent &&
  dots.some((other) => other !== dot && covers(box(text), box(other.querySelector("path")))))
  .map(([, text]) => text.textContent);
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_label_of_a_moving_message_does_not_cover_another_moving_message(
    chromium: Any, tmp_path: Path, width: int
) -> None:
    """While messages move side by side in the picture of `mqtool ui`, no message's label covers another message."""
    begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
    readers = [{"name": f"{each}/tag", "label": each} for each in ("first", "second", "third")]
    records = [*begins, *jobs(readers)]
    (topology,) = [each for each in records if each["kind"] == "topology"]
    topology["queues"][0]["type"] = "stream"
    for number in range(2):
        sent, ready = published(1000, number)
        records += [sent, {**ready, "what": "appended"}]
    for reader in readers:
        records += [happens(3000, "read", number, consumer=reader["name"], offset=1, to=None) for number in range(2)]
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 6000}])
    page.resize(width)
    page.ask("document.querySelector('#time').step = 'any'")
    labels = 0
    for step in range(80):
        seek(page, 0.15 + step / 120)
        labels += len([each for each in page.find(".dot.moving text") if each.text])
        assert page.ask(_COVERING) == [], step
    assert labels > 10


def test_purged_and_lost_messages_are_marked_as_dropped(chromium: Any, tmp_path: Path) -> None:
    """If a queue is purged, or a restart of the broker loses messages, the picture of `mqtool ui` marks these messages
    as dropped before it removes them.
    """
    records = [*jobs(), *published(1000, 0), *published(1000, 1)]
    records.append({"kind": "moved", "t": 4000, "queues": {"jobs": [1, 0, 2]}, "taken": [], "published": []})
    records.append({"kind": "event", "t": 6000, "what": "purged", "queue": "jobs"})
    page = recorded(chromium, tmp_path, [*records, {"kind": "now", "t": 8000}])
    seen = []
    for step in range(60):
        seek(page, step / 60)
        assert differences(page) == []
        fates = sorted(fate for fate, _ in drawn(page))
        if not seen or seen[-1] != fates:
            seen.append(fates)
    assert seen[-4:] == [["dropped", "ready"], ["ready"], ["dropped"], []]


def test_a_message_dropped_after_its_delay_is_marked_at_the_exchange_that_finds_no_queue(
    chromium: Any, tmp_path: Path
) -> None:
    """If a delayed-message exchange forwards a message to a topic exchange after the message's delay, and no binding
    of the topic exchange matches, the picture of `mqtool ui` moves the message to the topic exchange, and marks it as
    dropped there.
    """
    records = jobs()
    records[1]["exchanges"] = [
        {"name": "logs", "type": "topic", "alternate": None},
        {"name": "logs.delayed", "type": "x-delayed-message", "alternate": None},
    ]
    (link,) = records[1]["links"]
    records[1]["links"] = [
        {**link, "from": "logs", "keys": ["kern.*"]},
        {**link, "from": "logs.delayed", "to": "logs", "toExchange": True, "keys": [""]},
    ]
    sent, _ = published(1000, 0)
    sent |= {"paths": [], "details": {**sent["details"], "exchange": "logs.delayed", "routing_key": "cron.info"}}
    event = {"kind": "event", "message": 0}
    records += [sent, {**event, "t": 1000, "what": "delayed", "exchange": "logs.delayed", "copy": 0, "until": 3000}]
    records.append({**sent, "t": 3000, "message": 1, "from": {"exchange": "logs.delayed", "copy": 0}})
    records += [{**event, "t": 3000, "message": 1, "what": "dropped"}, {"kind": "now", "t": 6000}]
    page = recorded(chromium, tmp_path, records)
    moved: list[tuple[str, str]] = []
    for step in range(60):
        seek(page, step / 60)
        moved += [each for each in drawn(page) if each not in moved]
    assert moved[-2:] == [("ready", "x:logs"), ("dropped", "x:logs")]


def test_the_marks_of_dropped_messages_do_not_cover_the_number_of_messages_that_are_not_drawn(
    chromium: Any, tmp_path: Path
) -> None:
    """In the picture of `mqtool ui`, a queue shows up to ten messages and the number of the others. If the queue drops
    messages, the picture marks them, and the marks do not cover this number. If the queue is purged, the number
    disappears immediately.
    """
    records = jobs(ready=5000)
    for number in range(12):
        records += published(1000, number)
    records += [happens(5000, "discarded", number, reason="maxlen") for number in range(6)]
    for number in range(12, 24):
        records += published(8000, number)
    records.append({"kind": "moved", "t": 8001, "queues": {"jobs": [5018, 0, 5024]}, "taken": [], "published": []})
    purged = {"kind": "event", "t": 8002, "what": "purged", "queue": "jobs"}
    page = recorded(chromium, tmp_path, [*records, purged, {"kind": "now", "t": 12_000}])
    ended = 0
    for step in range(120):
        seek(page, step / 120)
        marks, number = page.ask(
            """
            const box = (each) => each.getBoundingClientRect().toJSON();
            const number = document.querySelector(".node.q .more");
            const marks = [...document.querySelectorAll(".dot.ended path")].map(box);
            return [marks, number.textContent ? box(number) : null];
            """
        )
        ended += len(marks)
        assert not number or step <= 80, page.nodes()
        for mark in marks if number else []:
            assert mark["left"] > number["right"] or mark["top"] > number["bottom"] - 4, step
    assert ended > 50


def test_a_consumers_box_shows_the_prefetch_limit(chromium: Any, tmp_path: Path) -> None:
    """In the picture of `mqtool ui`, a consumer's box shows the prefetch limit, or "no limit" if the limit is 0, or
    "auto-ack" if the consumer does not acknowledge messages.
    """
    consumers = [
        {"name": "a/1", "label": "worker 1"},
        {"name": "b/2", "label": "worker 2", "prefetch": 0},
        {"name": "c/3", "label": "reader", "prefetch": 0, "isAutomatic": True},
    ]
    page = recorded(chromium, tmp_path, jobs(consumers))
    nodes = page.nodes()
    assert nodes["consumer worker 1"] == "prefetch 1"
    assert nodes["consumer worker 2"] == "prefetch 0: no limit"
    assert nodes["consumer reader"] == "auto-ack"


def test_an_amqp_1_0_consumers_box_shows_its_link_credit_even_after_a_reconnection(
    chromium: Any, tmp_path: Path
) -> None:
    """In the picture of `mqtool ui`, the box of an AMQP 1.0 consumer shows the consumer's link credit, even after the
    client has reconnected. The box of an AMQP 0-9-1 consumer shows the prefetch limit instead.
    """
    worker = {"label": "worker 1", "prefetch": None}
    first, second = (f"10.0.0.7:{port} -> 10.0.0.1:5672/0" for port in (50001, 50002))
    granted = {"kind": "moved", "queues": {}, "taken": [], "published": []}
    records = [*jobs([{"name": first, **worker}]), {**granted, "t": 1000, "credit": [[first, 1]]}]
    records += [each for each in jobs([{"name": second, **worker}], t=4000) if each["kind"] == "topology"]
    records += [{**granted, "t": 5000, "credit": [[second, 20]]}, {"kind": "now", "t": 8000}]
    page = recorded(chromium, tmp_path, records)
    seen = []
    for step in range(20):
        seek(page, step / 20)
        seen.append(page.nodes()["consumer worker 1"])
    assert [says for says, _ in itertools.groupby(seen)] == ["consumer", "credit 1", "credit 20"]


def test_the_name_of_a_client_called_publisher_is_shown_once(chromium: Any, tmp_path: Path) -> None:
    """In the picture of `mqtool ui`, the box of a client called "publisher" shows this word only once, not as both its
    role and its name. The client's panel shows the role as its heading, and the name below it.
    """
    counts = {"kind": "moved", "queues": {}, "taken": [], "published": [["publisher", "", 1]]}
    page = recorded(chromium, tmp_path, [*jobs(), {**counts, "t": 1000}, {**counts, "t": 5000}])
    seek(page, 0.9)
    (publisher,) = page.find(".node.p")
    texts = [each.text for each in publisher.find_elements("css selector", "text")]
    assert [each for each in texts if each] == ["publisher"]
    assert publisher.get_attribute("aria-label") == "publisher"
    publisher.click()
    page.until(lambda: page.text("#facts").split() == ["Publisher", "name", "publisher"], "the panel")


def test_a_client_that_consumes_again_is_one_consumer(chromium: Any, tmp_path: Path) -> None:
    """If a client cancels its consumer and starts another one on the same channel, the picture of `mqtool ui` shows a
    single consumer. A message that was delivered to the cancelled consumer is drawn at the new one.
    """
    channel = "10.0.0.7:50001 -> 10.0.0.1:5672 (1)"
    records = [*jobs([{"name": f"{channel}/second", "label": "receiver"}]), *published(1000, 0)]
    to = {"client": "receiver", "connection": channel[:-4], "protocol": "AMQP 0-9-1"}
    delivered = happens(1001, "delivered", 0, consumer=f"{channel}/first", redelivered=False, no_ack=False, to=to)
    page = recorded(chromium, tmp_path, [*records, delivered])
    seek(page, 0.5)
    assert [name for name in page.nodes() if name.startswith("consumer")] == ["consumer receiver"]
    seek(page, 1)
    assert page.dots() == [("unacknowledged", f"c:{channel}/second")]


def test_the_picture_shows_no_generated_names(chromium: Any, tmp_path: Path) -> None:
    """The picture of `mqtool ui` shows no generated names. A consumer has the name of its client. A queue with a
    generated name is called "screen's queue" if the queue belongs to the client `screen`, and "temporary queue" if the
    queue's client is unknown.
    """
    to = {"client": "screen", "connection": "10.0.0.7:50001 -> 10.0.0.1:5672", "protocol": "AMQP 0-9-1"}
    consumer = "10.0.0.7:50001 -> 10.0.0.1:5672 (1)/ctag1.38a78d6f44a14a9b8d6d1f7b0e1a2c3d"
    records = [*jobs(), *published(1000, 0)]
    generated = "amq.gen-3QaZkCC08N2hJv-BxYH1Aw"
    for record in records:
        if "queues" in record and isinstance(record["queues"], list):
            record["queues"].append({**record["queues"][0], "name": generated})
            record["links"].append({**record["links"][0], "to": generated})
    page = recorded(chromium, tmp_path, records)
    assert names(page)[1] == {"jobs", "temporary queue"}
    delivered = happens(1001, "delivered", 0, consumer=consumer, redelivered=False, no_ack=False, to=to)
    page = recorded(chromium, tmp_path, [*records, {**delivered, "queue": generated}])
    seek(page, 0.5)
    assert names(page) == ({"boss", "screen"}, {"jobs", "screen's queue"})


def test_a_tutorials_picture_shows_a_generated_name_that_a_terminal_shows(chromium: Any, tmp_path: Path) -> None:
    """Once a command in a tutorial has printed the generated name of a queue, the tutorial's picture shows this name,
    so that a viewer can find the queue in the picture. Before that, the picture calls the queue "worker 1's queue".
    """
    generated = "amq.gen-3QaZkCC08N2hJv-BxYH1Aw"
    records = json.loads(json.dumps(play()).replace('"jobs"', f'"{generated}"'))
    line = {"t": 9000, "n": 0, "kind": "printed", "terminal": "boss", "line": f"logs\t{generated}"}
    records.insert(next(index for index, each in enumerate(records) if each["t"] > 9000), line)
    page = recorded(chromium, tmp_path, records)
    seek(page, 0.3)
    assert names(page)[1] == {"worker 1's queue"}
    seek(page, 0.6)
    assert names(page)[1] == {generated}


@on_any_broker
def test_a_consumer_without_a_name_is_named_after_its_client_library(
    shell: Shell, broker: TestBroker, chromium: Any
) -> None:
    """If a consumer's connection has no name, `mqtool ui` gives the consumer the name of its client library, and not
    its consumer tag.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    ui = shell.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
    page = Page(chromium, ui.stdout.strip())
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_consume(queue, lambda *_: None)
        page.until(lambda: "Pika Python Client Library" in names(page)[0], "the consumer")
        page.until(lambda: names(page)[1] == {"Pika Python Client Library's queue"}, "its queue")
    chromium.get("about:blank")


@on_any_broker
def test_the_page_of_an_empty_broker_proposes_three_commands_for_that_broker(
    shell: Shell, broker: TestBroker, chromium: Any
) -> None:
    """If nothing is declared on the broker, the page of `mqtool ui` proposes three commands with the broker's URL,
    without the password: to send a message, to receive it, and to publish a log that nobody gets. The first one exits
    with 0, and its queue appears on the page. The legend shows only shapes that have been on the page.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    ui = shell.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
    page = Page(chromium, ui.stdout.strip())
    page.until(lambda: page.find("#empty:not([hidden])"), "the hint")
    proposed = [each.text for each in page.find("#examples code")]
    url = f"--url amqp://guest@{broker.url.partition('@')[2]}"
    assert proposed == [f"mqtool {words} {url}" for words in ("send hello", "receive", "emit-log topic kern.info lost")]
    assert not page.find("#legend li:not([hidden])")
    elsewhere = {"MQTOOL_URL": "amqp://127.0.0.1:9", "AMQP_URL": "amqp://127.0.0.1:9"}
    assert shell.run(*shlex.split(proposed[0]), environment=elsewhere).code == 0
    page.until(lambda: not page.find("#empty:not([hidden])"), "the queue instead of the hint")
    page.until(lambda: page.find("#legend li:not([hidden])"), "the legend")
    assert {each.text.partition(":")[0] for each in page.find("#legend li:not([hidden])")} <= {"ready", "confirmed"}
    chromium.get("about:blank")


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.own_vhost("a consumer that RabbitMQ has just cancelled in this vhost may still be shown")
def test_on_rabbitmq_the_page_of_a_tutorial_shows_only_the_tutorials_messages(
    shell: Shell, broker: TestBroker, chromium: Any
) -> None:
    """If a tutorial runs on RabbitMQ, the page of `tutorial run --ui` shows the individual messages that are published
    to the tutorial's exchanges, and no others.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for command in (["queue", "declare", "private"], ["exchange", "declare", "others", "fanout"]):
        assert shell.run("mqtool", *command).code == 0
    assert shell.run("mqtool", "exchange", "bind", "others", "private").code == 0
    command = shell.start("mqtool", "tutorial", "run", "publish-subscribe", "--ui", "--url", broker.url, ready=False)
    page = Page(chromium, command.wait_for_stdout("\n").stdout.split("\n")[0])

    def continued(after: str) -> None:
        page.until(lambda: after in page.text("#narration") and page.find("#next:enabled"), after)
        page.press("n")

    page.until(lambda: page.find("#narration"), "the play")
    continued("No queue is bound to it yet")
    continued("Start two receivers")
    page.until(lambda: page.find('.arrow.binding[data-from$=".logs"]'), "the bindings")
    assert shell.run("mqtool", "send", "-e", "others", "secret").code == 0
    continued("A fanout exchange copies")
    page.until(lambda: re.search(r"to “demo\.\w+\.logs”", page.said()), "a message of the tutorial")
    assert "others" not in page.said()
    assert "--tap" not in page.text("#note")
    page.until(lambda: "checks passed" in page.text("#narration"), "the end")
    assert command.interrupt().wait().code in (0, 130)
    chromium.get("about:blank")


def play(consumers: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The records of a play with two scenes and a message in each. At the end, its consumer and publisher are gone."""
    tasks = {"name": "one/tag", "label": "worker 1"}
    numbered = iter(range(100))
    to = {"consumer": "one/tag", "no_ack": False, "redelivered": False, "to": None}

    def of_play(t: int, kind: str, **fields: object) -> dict[str, Any]:
        return {"t": t, "kind": kind, "n": next(numbered), **fields}

    def scene(t: int, number: int, text: str) -> list[dict[str, Any]]:
        shown = of_play(t, "scene", number=number, text=text, waits=True, pace=None)
        return [shown, of_play(t + 100, "goes_on", number=number)]

    story = "Workers share tasks, and each task is done by one of them."
    return [
        of_play(0, "session", plays=[{"name": "work-queues", "title": "Work queues", "story": story}]),
        of_play(0, "begins", name="work-queues", title="Work queues", story=story),
        of_play(0, "opened", names=["boss", "worker 1", "worker 2"]),
        *jobs([tasks]),
        *scene(1000, 1, "Two workers share a queue. With prefetch 1, a worker gets its next task when it is done."),
        *published(2000, 0, "first"),
        happens(2000, "delivered", 0, **to),
        happens(2500, "acknowledged", 0),
        *scene(7000, 2, "The next task."),
        *published(8000, 1, "second"),
        happens(8000, "delivered", 1, **to),
        happens(8500, "acknowledged", 1),
        of_play(9000, "checked", what="both tasks were done", ok=True),
        *[each for each in jobs(consumers, t=9500) if each["kind"] == "topology"],
        of_play(20000, "ends", text="That was Work queues: 1 check passed."),
    ]


def test_messages_arrive_before_the_next_scene_begins(chromium: Any) -> None:
    """If a viewer presses Next while twelve messages are still moving to their queue, the page of a tutorial draws all
    of them in the queue, and counts all of them as ready, before it shows the next scene's commands.
    """
    watched, pressed, over = threading.Event(), threading.Event(), threading.Event()

    def now() -> dict[str, int]:
        return {"t": round(time.time() * 1000)}

    def until(event: threading.Event) -> Iterator[dict[str, Any]]:
        while not event.wait(0.05):
            yield {"kind": "now", **now()}

    def records() -> Iterator[dict[str, Any]]:
        first, *_, second = [each for each in play() if each["kind"] == "scene"]
        begins = [each for each in play() if each["kind"] in ("session", "begins", "opened")]
        yield from ({**each, **now()} for each in [*begins, first, {"kind": "goes_on", "n": 10}, *jobs()])
        yield from until(watched)
        for number in range(12):
            yield from published(now()["t"], number)
        yield {**second, "n": 11, **now()}
        yield from until(pressed)
        yield {"kind": "goes_on", "n": 12, **now()}
        yield of_terminal(now()["t"], 13, "typed")
        yield from until(over)

    def press(_: object) -> Iterator[dict[str, Any]]:
        pressed.set()
        return iter(())

    server = PageServer(records, answers={"/play": press})
    page = Page(chromium, server.url)
    page.until(lambda: page.find("#narration") and page.text("#scene") == "Scene 1", "the play")
    page.ask(
        f"""
        window.seen = null;
        const text = (selector) => document.querySelector(selector).textContent;
        const look = () => {{
          const moving = document.querySelectorAll(".dot.moving").length;
          if (moving && text("#scene") === "Scene 2") document.querySelector("#next").click();
          if (!text("#terminals").includes("mqtool send")) return requestAnimationFrame(look);
          window.seen = [moving, (() => {{ {_COUNTED_AND_DRAWN} }})()];
        }};
        look();
        """
    )
    watched.set()
    page.until(lambda: page.ask("return window.seen"), "the next scene")
    over.set()
    server.close()
    moving, (queue,) = page.ask("return window.seen")
    assert (moving, queue["ready"], queue["unacked"]) == (0, 12, 0)
    assert "12 ready · 0 unacked" in queue["says"]
    chromium.get("about:blank")


def box(page: Page, selector: str) -> dict[str, float]:
    """Where an element is in the window."""
    found: dict[str, float] = page.ask("return document.querySelector(arguments[0]).getBoundingClientRect()", selector)
    return found


def of_one_row(page: Page, selector: str) -> bool:
    """True if these elements are beside each other."""
    found = page.ask(
        "return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility())"
        ".map((each) => { const { top, bottom } = each.getBoundingClientRect(); return (top + bottom) / 2; })",
        selector,
    )
    return max(found) - min(found) < 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_takes_most_of_the_page(chromium: Any, tmp_path: Path, scheme: str) -> None:
    """In a window of 1280×800 pixels, the page of a tutorial needs no scrolling, and the picture takes more than
    three quarters of the width. In a window of 390×844 pixels, the whole picture is visible without scrolling, and
    the buttons are in one row.
    """
    page = recorded(chromium, tmp_path, play())
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.until(lambda: "Two workers" in page.text("#narration"), "the first scene")
    for width, height in ((1280, 800), (390, 844)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.until(lambda: page.ask("return innerHeight") == height, "the window")  # noqa: B023
        seek(page, 0.2)
        assert page.ask("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
            width, height,
        ]  # fmt: skip
        assert of_one_row(page, "#buttons button")
        assert of_one_row(page, "nav > button, nav input")
        controls, picture = box(page, "nav"), box(page, "#picture")
        assert controls["bottom"] == pytest.approx(height, abs=1)
        assert controls["height"] < 50
        above = controls["top"] if width > 600 else box(page, "#buttons")["top"]
        assert box(page, "#narration")["bottom"] <= picture["top"]
        assert picture["bottom"] <= above
        if width > 600:
            assert box(page, "#frame")["width"] == width
            assert picture["width"] > 0.75 * width
            assert page.ask(
                "const main = document.querySelector('main'); return main.scrollHeight <= main.clientHeight"
            )
        else:
            assert picture["height"] > 0.3 * height
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_projected_tutorial_with_three_queues_and_charts_is_legible(chromium: Any, tmp_path: Path) -> None:
    """In a window of 1280×800 pixels, as on a projector, the names of queues in a tutorial's picture are at least 12
    pixels high, and the page does not scroll, even with charts and three queues one below the other.
    """
    records = play()
    for topology in (each for each in records if each["kind"] == "topology"):
        (queue,) = topology["queues"]
        topology["queues"] += [{**queue, "name": name} for name in ("mail", "stock")]
    charts = [{"title": "waiting", "unit": "", "values": [1, 2, 3], "first": 0}]
    lines = [{"t": 9000, "kind": "printed", "n": 50 + n, "terminal": "boss", "line": f"line {n}"} for n in range(9)]
    records[-1:-1] = lines
    records.insert(-1, {"t": 9100, "kind": "measured", "n": 70, "charts": charts})
    page = recorded(chromium, tmp_path, records)
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    seek(page, 0.95)
    page.until(lambda: page.find("#charts figure"), "the chart")
    seek(page, 0.95)
    below = "const pre = document.querySelector('.terminal pre'); return pre.scrollHeight - pre.clientHeight"
    assert page.ask(f"{below} - pre.scrollTop") < 2, "the latest line is visible"
    assert page.ask(below) > 0
    sizes = page.ask(
        "return [...document.querySelectorAll('.node.q .name')].map((e) => 13 * e.getScreenCTM().a)"  # 13 px unscaled
    )
    assert len(sizes) == 3
    assert min(sizes) >= 12
    assert page.ask("const main = document.querySelector('main'); return main.scrollHeight <= main.clientHeight")


def test_the_picture_keeps_its_place_from_scene_to_scene(chromium: Any, tmp_path: Path) -> None:
    """In a window of 1280×900 pixels, the picture of a tutorial has the same position and height in every scene.
    Neither the length of the scene's text, nor the number of terminals, nor charts or checks change that.
    """
    records = play()
    texts = iter([("Send a task.", ""), ("The next task. " * 16, "What will the other worker do meanwhile? " * 4)])
    for scene in (each for each in records if each["kind"] == "scene"):
        scene["text"], scene["question"] = next(texts)
    at = next(index for index, each in enumerate(records) if each["t"] > 8500)
    charts = [{"title": "waiting", "unit": "", "values": [1, 2, 3], "first": 0}]
    records[at:at] = [
        {"t": 8600, "n": 0, "kind": "checked", "what": "both tasks were done " * 8, "ok": True},
        {"t": 8600, "n": 0, "kind": "measured", "charts": charts},
    ]
    end = next(index for index, each in enumerate(records) if each["kind"] == "ends")
    records[end:end] = [
        {"t": 11000, "n": 0, "kind": "opened", "names": ["boss", "worker 1"]},
        {"t": 11000, "n": 0, "kind": "scene", "number": 3, "text": "The end.", "waits": True, "pace": None},
        {"t": 11100, "n": 0, "kind": "goes_on", "number": 3},
    ]
    numbers = itertools.count()
    records = [{**each, "n": next(numbers)} if "n" in each else each for each in records]
    page = recorded(chromium, tmp_path, records)
    found = {}
    for step in range(1, 20):
        seek(page, step / 22)
        frame = box(page, "#frame")
        terminals = len(page.find(".terminal"))
        charted = len(page.find("#charts figure"))
        found[page.text("#scene"), terminals, charted] = (round(frame["top"]), round(frame["height"]))
    assert {*found} >= {("Scene 1", 3, 0), ("Scene 2", 3, 0), ("Scene 2", 3, 1), ("Scene 3", 2, 0)}
    assert len({*found.values()}) == 1, found


def test_the_end_of_a_recording_still_shows_clients_and_queue(chromium: Any, tmp_path: Path) -> None:
    """If the recording of a tutorial is played to its end, the tutorial's picture still shows the publisher, the queue
    and the consumer, with an arrow from the publisher to the default exchange, and one from the queue to the consumer.
    """
    page = recorded(chromium, tmp_path, play())
    seek(page, 1)
    page.until(lambda: "1 check passed" in page.text("#narration"), "the end")
    assert names(page) == ({"boss", "worker 1"}, {"jobs"})
    assert page.nodes()["consumer worker 1"] == "prefetch 1"
    assert page.find('.arrow.consumes[data-from="q:jobs"]')
    assert page.find('.arrow.publishes[data-to="x:"]')


def test_the_end_of_a_recording_shows_deleted_queues_only_if_no_command_follows(chromium: Any, tmp_path: Path) -> None:
    """If a tutorial runs a command after its queues were deleted, for example to list the queues, the picture at the
    end of the recording shows no queue. If no such command follows, the picture still shows the deleted queues.
    """
    (topology,) = [each for each in jobs(t=9500) if each["kind"] == "topology"]
    gone = [{"kind": "event", "t": 9500, "what": "purged", "queue": "jobs"}, {**topology, "links": [], "queues": []}]
    command = of_terminal(9600, 30, "typed")
    page = recorded(chromium, tmp_path, [*play()[:-2], *gone, command, play()[-1]])
    seek(page, 1)
    assert names(page)[1] == set()
    page = recorded(chromium, tmp_path, [*play()[:-2], *gone, play()[-1]])
    seek(page, 1)
    assert names(page)[1] == {"jobs"}


def test_the_time_bar_of_a_recording_has_a_mark_for_each_scene(chromium: Any, tmp_path: Path) -> None:
    """The time bar of a recorded tutorial has a mark for each scene. A click on a mark shows its scene, and so does a
    page address that contains the scene's number.
    """
    page = recorded(chromium, tmp_path, play())
    page.until(lambda: len(page.find("#chapters button")) == 2, "the marks")
    page.ask("document.querySelectorAll('#chapters button')[1].click()")
    page.until(lambda: page.text("#scene") == "Scene 2", "the second scene")
    page.ask("document.querySelectorAll('#chapters button')[0].click()")
    page.until(lambda: page.text("#scene") == "Scene 1", "the first scene")
    linked = Page(chromium, f"{page.url}#work-queues/2")
    linked.until(lambda: linked.text("#scene") == "Scene 2", "the second scene, by its address")


def test_a_scene_asks_what_will_happen_and_answers_later(chromium: Any, tmp_path: Path) -> None:
    """Before a scene's commands run, the page of a tutorial asks the viewer what will happen. Once the commands have
    run, the page shows the answer.
    """
    records = play()
    scene = next(each for each in records if each["kind"] == "scene")
    scene["question"] = "Who gets the task?"
    first = next(index for index, each in enumerate(records) if each.get("number") == 2)
    records.insert(first, {"t": 6900, "kind": "answered", "n": 4.5, "text": "Worker 1."})
    page = recorded(chromium, tmp_path, records)
    page.until(lambda: page.text("#question") == "What will happen? Who gets the task?", "the question")
    seek(page, 0.1)
    assert "Answer" not in page.text("#checks")
    seek(page, 0.34)
    page.until(lambda: page.text("#checks") == "Answer: Worker 1.", "the answer")
    page.ask("document.querySelectorAll('#chapters button')[1].click()")
    page.until(lambda: page.text("#scene") == "Scene 2" and page.text("#question") == "", "a scene without a question")


def test_a_live_region_tells_screen_readers_what_each_client_does(chromium: Any, tmp_path: Path) -> None:
    """A live region of the page of `mqtool ui` tells screen readers which client has published, received or
    acknowledged which message, and which publisher has received a confirm or a nack.
    """
    confirmed = of_confirms()[-2]
    records = [*play(), {**confirmed, "t": 2001}, {**confirmed, "t": 8001, "messages": [1], "nack": True}]
    page = recorded(chromium, tmp_path, records)
    # Each sentence is there only for a moment.
    page.ask(
        """
        window.heard = [];
        const told = document.querySelector("#told");
        new MutationObserver(() => heard.push(...told.textContent.split(". "))).observe(told, {
          childList: true, characterData: true, subtree: true,
        });
        """
    )

    def heard(sentence: str) -> bool:
        return sentence in page.ask("return window.heard")

    seek(page, 0.05)
    page.ask("document.querySelector('#pause').click()")
    heard_first = ("boss published “first”", "worker 1 got “first”", "worker 1 acknowledged “first”")
    for sentence in (*heard_first, "boss got a confirm for “first”", "boss got a nack for “second”"):
        page.until(lambda expected=sentence: heard(expected), sentence)
    assert page.ask("return document.querySelector('#told').getAttribute('role')") == "log"
