"""`mqtool ui`: what its page shows in a browser, and that other sites get nothing from its server."""

import json
import os
import re
import shlex
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from mqtool.address import without_passwords
from mqtool.cli.commands.ui import _create, _record
from mqtool.testing import EmbeddedBroker
from tests import hostile
from tests.brokers import TestBroker, large, on_any_broker
from tests.cli.browser import Page
from tests.cli.page_actions import run_action
from tests.cli.shell import Running, Shell, wait_until


def do(shell: Shell, command: str) -> None:
    """Run a command and assert that it succeeds."""
    done = shell.run("mqtool", *shlex.split(command))
    assert done.code == 0, done.stderr


@pytest.fixture
def ui(shell: Shell, broker: TestBroker) -> Running:
    """mqtool ui, which has printed its address."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell.start("mqtool", "ui", ready=False).wait_for_stdout("\n")


@pytest.fixture
def page(ui: Running, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Page]:
    found = Page(chromium, ui.stdout.strip())
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed > failed:
        where = Path(os.environ.get("TMPDIR", "/tmp")) / f"mqtool-ui-{request.node.name}.png"
        chromium.save_screenshot(str(where))
        print(f"what the page looked like: {where}")


@on_any_broker
@large
def test_each_message_is_drawn_in_its_queue_or_at_its_consumer(shell: Shell, broker: TestBroker, page: Page) -> None:
    """The page of `mqtool ui` draws a ready message in its queue, an unacknowledged message at its consumer, and a
    dead-lettered message in the dead-letter queue.
    """
    do(shell, "queue declare dead")
    do(shell, "queue declare jobs --dead-letter-exchange '' --argument x-dead-letter-routing-key=dead")
    do(shell, "send -q jobs 'resize 17'")
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "a message in the queue")
    page.until(lambda: page.nodes().get("quorum queue jobs") == "1 ready · 0 unacked", "one ready")
    assert len(page.find('.arrow.dead[data-from="q:jobs"][data-to="x:"]')) == 1
    page.click(".dot.resting")
    page.until(lambda: "resize 17" in page.text("#facts"), "the body")
    worker = shell.start("mqtool", "worker", "-q", "jobs", "--forget-ack").wait_until_ready()
    page.until(lambda: [fate for fate, _ in page.dots()] == ["unacknowledged"], "a message at its consumer")
    page.until(lambda: page.nodes()["quorum queue jobs"] == "0 ready · 1 unacked", "one unacked")
    worker.interrupt().wait()
    page.until(lambda: page.dots() == [("requeued", "q:jobs")], "the message in its queue again")
    page.until(lambda: not [name for name in page.nodes() if name.startswith("consumer")], "no consumer")
    get = {"count": 1, "ackmode": "reject_requeue_false", "encoding": "auto"}
    broker.api("POST", f"queues/{broker.vhost}/jobs/get", get)
    page.until(lambda: page.dots() == [("ready", "q:dead")], "the dead letter in its queue")
    assert page.complaints() == []


@large
def test_mqtool_ui_shows_the_link_credit_of_an_amqp_1_0_worker(tmp_path: Path, chromium: Any) -> None:
    """On the embedded broker, the page of `mqtool ui` shows the link credit of an `mqtool worker` over AMQP 1.0."""
    with EmbeddedBroker(management_port=0) as broker:
        urls = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.urls["http"]}
        with Shell(tmp_path, {**urls, "MQTOOL_PROTOCOL": "amqp1.0"}) as shell:
            ui = shell.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
            page = Page(chromium, ui.stdout.strip())
            shell.start("mqtool", "worker", "-q", "jobs").wait_until_ready()
            page.until(lambda: page.nodes().get("consumer mqtool") == "credit 1", "the credit")
        chromium.get("about:blank")


@on_any_broker
@large
def test_the_label_of_a_binding_separates_the_headers_by_commas(shell: Shell, page: Page) -> None:
    """The page of `mqtool ui` labels the arrow of a binding to a headers exchange with the binding's headers, separated
    by commas. If a queue has two bindings to the exchange, a semicolon separates the bindings.
    """
    do(shell, "exchange declare reports headers")
    do(shell, "queue declare archive")
    do(shell, "exchange bind reports archive --match all -H format=pdf -H type=report")
    key = "x-match=all, format=pdf, type=report"
    labels = "return [...document.querySelectorAll('.arrow-words title')].map((e) => e.textContent).filter(Boolean)"
    page.until(lambda: page.ask(labels) == [key], "the binding")
    do(shell, "exchange bind reports archive --match any -H type=log")
    both = [f"{key}; x-match=any, type=log", f"x-match=any, type=log; {key}"]
    page.until(lambda: page.ask(labels)[0] in both, "both bindings")


@on_any_broker
@large
def test_the_page_shows_the_state_of_each_message(shell: Shell, page: Page) -> None:
    """The legend on the page of `mqtool ui` shows a different shape for each state of a message. The page lists a
    message that is returned as unroutable, draws a delayed message with the seconds until it is due, and draws a
    message of a stream in the stream's box.
    """
    shapes = page.ask("return [...document.querySelectorAll('#legend path')].map(e => e.getAttribute('d'))")
    assert len(shapes) == len(set(shapes)) > 8
    assert shell.run("mqtool", "send", "-e", "amq.direct", "-r", "nowhere", "--mandatory", "x").code == 75
    page.until(lambda: "is returned" in page.said(), "a returned message")
    do(shell, "exchange declare late x-delayed-message --argument x-delayed-type=fanout")
    do(shell, "send -e late -H x-delay:=600000 x")
    page.until(lambda: page.dots() == [("delayed", "x:late")], "a delayed message")
    left = int(page.text(".dot.delayed text").removesuffix(" s"))
    assert 500 < left <= 600
    do(shell, "queue declare log --queue-type stream")
    do(shell, "send -q log x")
    page.until(lambda: ("stream", "q:log") in page.dots(), "a message in a stream")
    reader = shell.start("mqtool", "receive", "-q", "log", "--offset", "first").wait_for_stdout("x")
    page.until(lambda: "at offset 0" in page.nodes().values(), "a reader at its offset")
    reader.interrupt().wait()


@on_any_broker
@large
def test_keys_step_forward_and_back_through_the_events_of_a_paused_page(shell: Shell, page: Page) -> None:
    """While the page of `mqtool ui` is paused, it shows no new events. The key `.` steps forward to the next event, the
    key `,` steps back, and the key `l` returns to the live view.
    """
    do(shell, "send -q jobs one")
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "a message in the queue")
    page.press(" ")
    page.until(lambda: page.text("#where").startswith("paused"), "paused")
    do(shell, "receive -q jobs -c 1")
    do(shell, "send -q jobs two")
    page.until(lambda: "paused, 0.0" not in page.text("#where"), "later events")
    assert page.dots() == [("ready", "q:jobs")]
    page.press(".")
    page.until(lambda: "is delivered" in page.said(), "the next event")
    page.until(lambda: page.text("#where").startswith("paused"), "paused again")
    assert "is acknowledged" not in page.said()
    page.press(",")
    page.until(lambda: "is delivered" not in page.said(), "the moment before")
    page.press("l")
    page.until(lambda: page.text("#where") == "live" and "“jobs” is acknowledged" in page.said(), "live")
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "the second message")


@on_any_broker
@large
def test_the_page_can_be_used_with_the_keyboard_alone(shell: Shell, page: Page) -> None:
    """On the page of `mqtool ui`, Tab reaches the boxes, Enter opens a box's details, and Escape closes the details.
    The key t shows tables with the same information as the picture. The key / starts a search for names.
    """
    do(shell, "emit-log topic kern.critical 'A critical kernel error'")
    receiver = shell.start("mqtool", "receive-log", "topic", "kern.*").wait_until_ready()
    page.until(lambda: any(name.startswith("consumer") for name in page.nodes()), "a consumer")
    page.ask("document.querySelector('#table').focus()")
    reached = set()
    for _ in page.nodes():
        page.press("\ue004")
        reached.add(page.ask("return document.activeElement.dataset.role + ' ' + document.activeElement.dataset.name"))
        if "exchange topic_logs" in reached:
            break
    page.press("\ue007")
    page.until(lambda: "kern.*" in page.text("#facts"), "the bindings")
    page.press("\ue00c")
    page.until(lambda: not page.find("#details:not([hidden])"), "closed")
    assert page.ask("return document.activeElement.dataset.name") == "topic_logs"
    page.press("t")
    page.until(lambda: "topic_logs" in page.text("#exchanges"), "the table of exchanges")
    rows = page.ask("return [...document.querySelectorAll('#queues tbody tr')].map(row => row.innerText)")
    assert [row.split()[-5:] for row in rows] == [["classic", "0", "0", "1", "0"]]
    assert "prefetch" in page.text("#clients tbody")
    assert "message 1 published by mqtool to “topic_logs”" in page.said()
    page.ask("[...document.querySelectorAll('#happened button')].at(-1).focus()")
    page.press("\ue007")
    page.until(lambda: "A critical kernel error" in page.text("#facts"), "the message of the event")
    page.press("\ue00c")
    assert page.ask("return document.activeElement.closest('table').id") == "happened"
    page.press("/")
    page.press("TOPIC_L")
    page.until(
        lambda: (
            page.ask("return [...document.querySelectorAll('.node.found')].map(e => e.dataset.name)") == ["topic_logs"]
        ),
        "found",
    )
    receiver.interrupt().wait()


@on_any_broker
@large
def test_markup_in_names_and_bodies_is_shown_as_text(shell: Shell, broker: TestBroker, page: Page) -> None:
    """The page of `mqtool ui` shows markup and scripts in names, headers and bodies as plain text, and executes none of
    them.
    """
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    hostile.name_everything(broker.url)
    sent = shell.run("mqtool", "send", "-q", markup, "-H", f"{markup}={markup}", "--property", f"type={markup}", markup)
    assert sent.code == 0, sent.stderr
    queues = shell.run("mqtool", "list", "queues", "--json", "--management", broker.management).stdout.split("\n")[:-1]
    page.until(lambda: sum("queue" in name for name in page.nodes()) == len(queues), "all queues")
    page.until(lambda: page.dots() == [("ready", f"q:{markup}")], "the message")
    page.ask("document.querySelector('.dot.resting').dispatchEvent(new MouseEvent('click'))")
    page.until(lambda: page.text("#facts").count(markup) >= 3, "the facts")
    page.press("t")
    page.until(lambda: markup in page.text("#queues"), "the table")
    assert "\\u202eevil" in page.text("#queues")
    assert "\u202e" not in page.text("body") + "".join(page.nodes())
    assert page.find("img, script:not([src])") == []
    assert page.complaints() == []


@on_any_broker
@large
def test_the_page_fits_on_a_phone_and_has_enough_contrast(shell: Shell, page: Page) -> None:
    """If the window is 390 pixels wide, neither the page of `mqtool ui` nor its bar of buttons scrolls sideways. In the
    light and the dark colour scheme, the contrast between text and background is more than 7:1, and the contrast
    between a message and its queue is more than 3:1.
    """
    do(shell, "send -q jobs one")
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "a message in the queue")
    for width in (1280, 390):
        page.resize(width)
        page.until(lambda: page.dots() == [("ready", "q:jobs")], "the message still in its box")
        for part in ("html", "nav"):
            inside = "const e = document.querySelector(arguments[0]); return e.scrollWidth <= e.clientWidth"
            assert page.ask(inside, part), (part, width)
    for scheme in ("light", "dark"):
        page.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        text, back = page.ask("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        assert contrast(text, back) > 7
        dot, box = page.ask(
            "return [['.dot path', '.dot.resting path'], ['.node .box', '.node .box']]"
            ".map(([, selector]) => getComputedStyle(document.querySelector(selector)).fill)"
        )
        assert contrast(dot, box) > 3


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@on_any_broker
@large
def test_actions_on_the_page_run_commands_and_a_message_says_why_it_is_in_its_queue(
    shell: Shell, broker: TestBroker, page: Page
) -> None:
    """An action on the page of `mqtool ui` runs an mqtool command and shows its command line. A consumer that is
    started on the page runs until the user stops it. The details of a message say which binding routed the message to
    its queue.
    """
    do(shell, "exchange declare orders topic")
    do(shell, "queue declare jobs")
    do(shell, "exchange bind orders jobs 'eu.*'")
    page.until(lambda: page.find('.arrow.binding[data-to="q:jobs"]'), "the binding")
    page.press("d")
    page.act("publish", exchange="orders", key="eu.paid", body="-v <b>", headers='n:=3\na=1\nnote:="two\\nlines"')
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "a message in the queue")
    named = f"--url {without_passwords(broker.url)}"
    sent = f"mqtool send --mandatory -e orders -r eu.paid -H n:=3 -H a=1 -H 'note:=\"two\\nlines\"' {named} -- '-v <b>'"
    assert sent in page.text("#runs")
    page.click(".dot.resting")
    page.until(lambda: page.find("#asks button"), "a question")
    page.click("#asks button")
    page.until(lambda: "── 'eu.*' ──> jobs" in page.text("#answer"), "why here")
    assert "-H 'note:=\"two\\nlines\"'" in page.text("#answer")
    page.act("consume", queue="jobs", seconds="600")
    page.until(lambda: [fate for fate, _ in page.dots()] == ["unacknowledged"], "a message at its consumer")
    page.click(".run[data-action=consume] button:not([hidden])", -1)
    page.until(lambda: page.dots() == [("requeued", "q:jobs")], "the message in its queue again")
    assert page.find("#runs b") == []


@on_any_broker
@large
def test_publishing_from_a_publishers_box_uses_the_publishers_connection_name(
    shell: Shell, broker: TestBroker, page: Page
) -> None:
    """If a user clicks a publisher's box on the page of `mqtool ui` and then "Publish", the page runs a command with
    the publisher's connection name, and shows the message as published by the same publisher.
    """
    do(shell, "exchange declare orders fanout")
    parameters = pika.URLParameters(broker.url)
    parameters.client_properties = {"connection_name": "the shop"}
    with pika.BlockingConnection(parameters) as connection:
        connection.channel().basic_publish("orders", "", b"x")
        page.until(lambda: "publisher the shop" in page.nodes(), "the publisher")
        page.ask("document.querySelector('.node.p').dispatchEvent(new MouseEvent('click'))")
        page.until(lambda: page.text("#asks").startswith("Publish…"), "the button")
        page.click("#asks button")
        page.ask("document.querySelector('#run').click()")
        page.until(lambda: "MQTOOL_CONNECTION_NAME='the shop' mqtool send" in page.text("#runs"), "the command")
        page.until(lambda: page.said().count("published by the shop") == 2, "its message")
        assert "publisher mqtool" not in page.nodes()


@large
def test_the_page_says_that_it_cannot_show_individual_messages_on_rabbitmq(
    shell: Shell, broker: TestBroker, page: Page
) -> None:
    """The page of `mqtool ui` shows the topology and the message counts of any broker. On RabbitMQ without --tap or
    --firehose, the page says that it cannot show individual messages.
    """
    do(shell, "emit-log fanout lost")
    do(shell, "queue declare kept")
    do(shell, "exchange bind logs kept")
    do(shell, "emit-log fanout kept")
    page.until(lambda: page.find('.arrow.binding[data-from="x:logs"][data-to="q:kept"]'), "the binding")
    page.until(lambda: page.nodes().get("quorum queue kept") == "1 ready · 0 unacked", "one ready")
    assert ("not single messages" in page.text("#note")) is (broker.kind == "rabbitmq")
    assert broker.vhost in page.text("#broker")


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("how", ["--tap", "--firehose"])
@pytest.mark.own_vhost("a consumer that RabbitMQ has just cancelled in this vhost may still be shown")
@pytest.mark.usefixtures("no_other_firehose")
@large
def test_with_tap_or_firehose_the_page_shows_individual_messages_on_rabbitmq(
    shell: Shell, broker: TestBroker, chromium: Any, how: str
) -> None:
    """On RabbitMQ, the page of `mqtool ui --tap` or `mqtool ui --firehose` shows individual messages, but not the
    queues that the command declares for that purpose. When the command ends, it deletes these queues and turns the
    firehose off.
    """
    do(shell, "queue declare kept")
    do(shell, "emit-log fanout before")
    do(shell, "exchange bind logs kept")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    ui = shell.start("mqtool", "ui", how, "--record", "seen.html", ready=False).wait_for_stdout("\n")
    page = Page(chromium, ui.stdout.strip())
    page.until(lambda: "copies of messages" in page.text("#note"), "what is shown")
    page.until(lambda: page.find('.arrow.binding[data-from="x:logs"][data-to="q:kept"]'), "the binding")
    do(shell, "emit-log fanout 'info: ready'")
    page.until(lambda: "goes to queue “kept”" in page.said(), "the message")
    assert not [name for name in page.nodes() if "amq." in name]
    assert page.complaints() == []
    assert ui.interrupt().wait().code == 0
    queues = shell.run("mqtool", "list", "queues").stdout
    assert [line.split("\t")[0] for line in queues.splitlines()] == ["kept"]
    assert not broker.api("GET", f"vhosts/{broker.vhost}")["tracing"]  # type: ignore[index]


def fetch(url: str, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(
        url, data, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.readline()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def about(url: str, secret: str) -> dict[str, Any]:
    """Return the first record about the broker. Before it, the page is told to which broker mqtool connects."""
    request = urllib.request.Request(f"{url}events", headers={"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        connecting, found = json.loads(answer.readline()), json.loads(answer.readline())
    assert (connecting["kind"], found["kind"]) == ("problem", "about")
    assert connecting["text"] == f"connecting to {found['title']} …"
    return dict(found)


@on_any_broker
def test_other_sites_cannot_read_events_or_run_actions(ui: Running, broker: TestBroker) -> None:
    """The server of `mqtool ui` sends events and runs actions only if a request has the secret from the page's address.
    The server refuses requests from other sites or for other host names.
    """
    url, _, secret = ui.stdout.strip().partition("#")
    assert url.startswith("http://127.0.0.1:")
    status, headers, _ = fetch(url)
    assert status == 200
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert about(url, secret)["vhost"] == broker.vhost
    assert fetch(f"{url}events")[0] == fetch(f"{url}events", Authorization="Bearer x")[0] == 401
    for headers_of_others in (
        {"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
    ):  # fmt: skip
        assert fetch(f"{url}events", Authorization=f"Bearer {secret}", **headers_of_others)[0] == 403
        assert fetch(url, **headers_of_others)[0] == 403
    for path in ("../records.py", "%2e%2e/records.py", "page_server.py", "//etc/passwd", "."):
        assert fetch(url + path)[0] == 404
    run = json.dumps({"action": "declare-queue", "fields": {"name": "x", "type": "classic"}}).encode()
    assert fetch(f"{url}run", run)[0] == fetch(f"{url}run", run, Authorization="Bearer x")[0] == 401
    for headers_of_others in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert fetch(f"{url}run", run, Authorization=f"Bearer {secret}", **headers_of_others)[0] == 403
    for sent, code in ((b"x", 400), (b"[]", 400), (b"[" * 60_000, 400), (b" " * 70_000, 413)):
        assert fetch(f"{url}run", sent, Authorization=f"Bearer {secret}")[0] == code
    assert fetch(f"{url}exec", run, Authorization=f"Bearer {secret}")[0] == 404
    for action, fields in (
        ("exec", {}),
        ("declare-queue", {"name": "x", "type": "--evil"}),
        ("peek", {"queue": "a\0"}),
    ):
        wanted = json.dumps({"action": action, "fields": fields}).encode()
        assert b'"error"' in fetch(f"{url}run", wanted, Authorization=f"Bearer {secret}")[2]
    assert broker.api("GET", f"queues/{broker.vhost}") == []


@on_any_broker
def test_names_in_actions_are_not_treated_as_options_or_patterns(ui: Running, broker: TestBroker) -> None:
    """An action on the page of `mqtool ui` applies only to the chosen queue or connection, even if its name is `-x`
    or `*`: cutting the connection `*` does not cut all connections. The command that the page shows names the broker,
    so that it can be pasted into any terminal. Control characters in names are escaped, so that pasting a name cannot
    run a command.
    """
    url, _, secret = ui.stdout.strip().partition("#")

    def command(action: str, **fields: str) -> str:
        wanted = json.dumps({"action": action, "fields": fields}).encode()
        answer = json.loads(fetch(f"{url}preview", wanted, Authorization=f"Bearer {secret}")[2])
        line = str(answer.get("command", answer.get("error")))
        return line.removesuffix(f" --url {without_passwords(broker.url)}")

    assert command("publish", key="-x", body="a", headers="-n=1") == "mqtool send --no-declare -q-x -H-n=1 a"
    assert command("delay", queue="-x", body="a", delay="-1s").endswith("-q-x --delay=-1s a")
    assert command("cut", client="*") == "mqtool broker fault cut-connections 'name=[*]'"
    assert command("cut", client="shop") == "mqtool broker fault cut-connections name=shop"
    assert command("cut", client="") == "mqtool broker fault cut-connections"
    assert command("peek", queue="a\x03b\n") == r"mqtool peek $'a\x03b\x0a'"
    assert command("publish", key="q", body="x", publisher="\x1b").startswith(r"MQTOOL_CONNECTION_NAME=$'\x1b' mqtool")


@on_any_broker
@pytest.mark.parametrize("seconds", ["nan", "601", "-1", "soon"])
def test_the_action_consume_slowly_refuses_a_value_that_is_not_between_0_and_600_seconds(
    ui: Running, seconds: str
) -> None:
    """On the page of `mqtool ui`, the action "Consume slowly" needs a time from 0 to 600 seconds for each message. It
    refuses any other value with an error.
    """
    [refused] = run_action(ui, "consume", queue="jobs", seconds=seconds)
    assert refused["error"] == f"'{seconds}' is not a number of seconds from 0 to 600"


@on_any_broker
@pytest.mark.parametrize("how", ["--management", "--url"])
def test_an_action_uses_the_same_management_api_as_the_page(shell: Shell, broker: TestBroker, how: str) -> None:
    """The commands that the page of `mqtool ui` runs use the management API given with --management, even if the
    context selected with `context use` names another one. If the broker is given with --url and MQTOOL_URL names
    another broker, the commands ignore MQTOOL_MANAGEMENT_URL, which may belong to that other broker.
    """
    nowhere = "http://127.0.0.1:1"
    if how == "--management":
        del shell.environment["MQTOOL_URL"]
        shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
        do(shell, f"context add own --url {broker.url} --management {nowhere}")
        do(shell, "context use own")
    else:
        shell.environment |= {"MQTOOL_URL": "amqp://127.0.0.1:1", "MQTOOL_MANAGEMENT_URL": nowhere}
    given = broker.management if how == "--management" else broker.url
    ui = shell.start("mqtool", "ui", how, given, ready=False).wait_for_stdout("\n")
    lines = run_action(ui, "route", exchange="amq.topic", key="x")
    assert lines[-1]["code"] in (0, 3), lines


@on_any_broker
def test_the_page_changes_the_broker_of_a_protected_context_if_confirm_names_the_context(
    shell: Shell, broker: TestBroker
) -> None:
    """`mqtool ui --allow-changes --confirm NAME` lets the page change the broker of the protected context NAME: the
    commands that the page runs, such as `queue purge`, do not ask for confirmation again. The example command on the
    page also contains `--confirm NAME`.
    """
    do(shell, "queue declare jobs")
    do(shell, "send -q jobs hello")
    del shell.environment["MQTOOL_URL"]
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    do(shell, f"context add prod --protected --url {broker.url} --management {broker.management}")
    changing = ("-C", "prod", "--allow-changes", "--confirm", "prod")
    ui = shell.start("mqtool", "ui", *changing, ready=False).wait_for_stdout("\n")
    url, _, secret = ui.stdout.strip().partition("#")
    assert about(url, secret)["examples"][0] == "mqtool send hello --context prod --confirm prod"
    lines = run_action(ui, "purge", queue="jobs")
    assert (lines[0]["command"], lines[-1]["code"]) == (
        "mqtool queue purge --yes jobs --context prod --confirm prod",
        0,
    ), lines


def names_of_actions(ui: Running) -> list[str]:
    """Return the names of the actions that the page offers."""
    url, _, secret = ui.stdout.strip().partition("#")
    request = urllib.request.Request(f"{url}actions", b"{}", {"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line)["name"] for line in answer]


def test_the_page_offers_no_changes_to_a_broker_that_mqtool_did_not_start(shell: Shell, broker: TestBroker) -> None:
    """On a RabbitMQ broker that mqtool did not start, the page of `mqtool ui --vhost /` shows the default virtual host,
    and offers only the actions "route" and "peek", which change nothing. On an embedded broker, the page offers further
    actions, such as "publish".
    """
    shell.environment |= {"MQTOOL_MANAGEMENT_URL": broker.management, "XDG_STATE_HOME": str(shell.directory / "none")}
    ui = shell.start("mqtool", "ui", "--vhost", "/", ready=False).wait_for_stdout("\n")
    url, _, secret = ui.stdout.strip().partition("#")
    assert about(url, secret)["vhost"] == "/"
    actions = names_of_actions(ui)
    if broker.kind == "rabbitmq":
        assert actions == ["route", "peek"]
    else:
        assert {"route", "peek", "publish"} <= {*actions}
    ui.interrupt().wait()


def test_the_page_offers_no_changes_to_rabbitmq_if_the_management_api_is_another_brokers(
    shell: Shell, broker: TestBroker
) -> None:
    """If the management API that is given to `mqtool ui` belongs to an embedded broker, but messages would be published
    to RabbitMQ, the page offers no action that changes RabbitMQ.
    """
    if broker.kind != "rabbitmq":
        pytest.skip("the embedded broker may be changed")
    with EmbeddedBroker(management_port=0) as other:
        shell.environment |= {"MQTOOL_MANAGEMENT_URL": other.management_url, "XDG_STATE_HOME": str(shell.directory)}
        ui = shell.start("mqtool", "ui", "--vhost", "/", ready=False).wait_for_stdout("\n")
        assert names_of_actions(ui) == ["route", "peek"]


@pytest.mark.parametrize(("tags", "may_read"), [("management", True), ("administrator", False)])
def test_ui_needs_only_access_to_the_management_api(
    shell: Shell, broker: TestBroker, tags: str, *, may_read: bool
) -> None:
    """A user who has the tag `management` and permissions in the virtual host can use `mqtool ui`. So can an
    administrator without these permissions, but the page then offers no action that changes the broker.
    """
    user = f"ui-{uuid.uuid4().hex[:8]}"
    shell.environment["XDG_STATE_HOME"] = str(shell.directory)
    broker.api("PUT", f"users/{user}", {"password": "pw", "tags": tags})
    try:
        if may_read:
            everything = {"configure": ".*", "write": ".*", "read": ".*"}
            broker.api("PUT", f"permissions/{broker.vhost}/{user}", everything)
        shell.environment["MQTOOL_URL"] = broker.url.replace("guest:guest@", f"{user}:pw@")
        shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
        ui = shell.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
        offered = names_of_actions(ui)
        assert {"route", "peek"} <= {*offered}
        assert may_read or len(offered) == 2
        assert ui.interrupt().wait().code == 0
    finally:
        broker.api("DELETE", f"users/{user}")


def test_ui_exits_with_an_error_if_the_user_has_no_permissions_in_the_virtual_host(
    shell: Shell, broker: TestBroker
) -> None:
    """`mqtool ui` exits with 77 (from RabbitMQ 4.3 on, with 69) if the user has no permissions in the virtual host,
    rather than show a page that can only repeat the broker's refusal.
    """
    user = f"ui-{uuid.uuid4().hex[:8]}"
    broker.api("PUT", f"users/{user}", {"password": "pw", "tags": "management"})
    try:
        shell.environment["MQTOOL_URL"] = broker.url.replace("guest:guest@", f"{user}:pw@")
        refused = shell.run("mqtool", "ui", "--management", broker.management)
        assert refused.code in (77, 69), refused.stderr
        assert user in refused.stderr
    finally:
        broker.api("DELETE", f"users/{user}")


@on_any_broker
def test_ui_exits_with_69_if_the_virtual_host_does_not_exist(shell: Shell) -> None:
    """`mqtool ui --vhost NAME` exits with 69 if there is no virtual host NAME, rather than show an empty page."""
    missing = shell.run("mqtool", "ui", "--vhost", "nosuch")
    assert missing.code == 69
    assert missing.stderr.startswith("mqtool: vhost 'nosuch' does not exist")


@on_any_broker
def test_ui_needs_a_password_file_that_can_be_read_again(shell: Shell) -> None:
    """If --password-file names stdin or a pipe, `mqtool ui` exits with 2, because each command of the page reads the
    password again, and would find nothing there.
    """
    for file in ("-", "/dev/stdin"):
        refused = shell.run("mqtool", "ui", "--password-file", file, stdin="guest")
        assert (refused.code, refused.stderr.count("a regular file")) == (2, 1)


def test_a_recording_is_written_even_if_the_command_ends_with_an_unexpected_error(tmp_path: Path) -> None:
    """If `mqtool ui --record FILE` ends with an unexpected error, FILE contains the events that happened before the
    error.
    """

    def events() -> Iterator[dict[str, Any]]:
        yield {"kind": "event", "t": 1, "what": "the last event"}
        raise TypeError

    with pytest.raises(TypeError):
        _record(tmp_path / "seen.html", _create(tmp_path / "seen.html"), events, threading.Event())
    assert "the last event" in (tmp_path / "seen.html").read_text()


@on_any_broker
def test_ui_exits_with_69_if_its_port_is_in_use_and_with_0_after_ctrl_c(shell: Shell, ui: Running) -> None:
    """`mqtool ui` exits with 69 if its port is in use or if the management API does not answer, and with 0 after
    Ctrl-C. If the port is in use, --record creates no file.
    """
    port = re.findall(r":(\d+)/", ui.stdout)[0]
    taken = shell.run("mqtool", "ui", "--port", port, "--record", "new.html")
    assert taken.code == 69
    assert "in use" in taken.stderr
    assert not (shell.directory / "new.html").exists()
    assert shell.run("mqtool", "ui", environment={"MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:9"}).code == 69
    assert ui.interrupt().wait().code == 0


@on_any_broker
@large
def test_a_recording_of_the_page_plays_without_mqtool(shell: Shell, chromium: Any) -> None:
    """`mqtool ui --record FILE` writes a recording of its page to one HTML file. The key s on the page also saves
    such a file. A browser plays each of the two files without mqtool, and loads nothing else.
    """
    do(shell, "send -q jobs before")
    ui = shell.start("mqtool", "ui", "--record", "seen <1>.html", ready=False).wait_for_stdout("\n")
    page = Page(chromium, ui.stdout.strip())
    page.until(lambda: page.dots() == [("ready", "q:jobs")], "a message in the queue")
    do(shell, "send -q jobs '</script><b>after'")
    page.until(lambda: page.dots() == [("ready", "q:jobs")] * 2, "another message")
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(shell.directory)})
    page.press("s")
    saved = shell.directory / "mqtool-ui.html"
    wait_until(saved.exists, lambda: "the saved recording", 30)
    assert ui.interrupt().wait().code == 0
    assert "3 events written" in ui.stderr
    for file in (saved, shell.directory / "seen <1>.html"):
        recorded = Page(chromium, file.as_uri())
        recorded.until(lambda shown=recorded: shown.dots() == [("ready", "q:jobs")] * 2, "both messages")
    assert recorded.find("b") == []
    recorded.press(",")
    recorded.press(",")
    recorded.until(lambda: recorded.dots() == [("ready", "q:jobs")], "the one that was there before")
    assert recorded.ask("return performance.getEntriesByType('resource').length") == 0
    assert recorded.complaints() == []


@on_any_broker
@pytest.mark.parametrize("command", [("ui",), ("tutorial", "run", "hello-world", "--ui")], ids=["ui", "tutorial run"])
def test_the_pages_secret_is_not_on_the_browsers_command_line(shell: Shell, command: tuple[str, ...]) -> None:
    """With --open, `mqtool ui` and `tutorial run --ui` start the browser with a private file that contains the page's
    address, so that other users do not see the secret in this address on the browser's command line. The file is
    deleted when the command ends.
    """
    browser = shell.directory / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > argument; p=${1#file://}; stat -c %a "$p" > mode; cat "$p" > seen\n')
    browser.chmod(0o755)
    shell.environment["BROWSER"] = f"{browser} %s"

    running = shell.start("mqtool", *command, "--open", ready=False).wait_for_stdout("#")
    address = running.stdout.split()[0]
    seen = shell.directory / "seen"
    wait_until(lambda: seen.exists() and address in seen.read_text(), "the browser")

    argument = (shell.directory / "argument").read_text().strip()
    assert address.partition("#")[2] not in argument
    assert (shell.directory / "mode").read_text() == "600\n"
    running.interrupt().wait()
    assert not Path(argument.removeprefix("file://")).exists()


@on_any_broker
def test_ui_record_does_not_replace_a_file(shell: Shell) -> None:
    """If FILE exists, `mqtool ui --record FILE` exits with 2 and leaves FILE as it is. If the command creates FILE,
    only the owner can read it.
    """
    kept = shell.directory / "kept.html"
    kept.write_text("mine")
    refused = shell.run("mqtool", "ui", "--record", "kept.html")
    assert (refused.code, "kept.html already exists" in refused.stderr) == (2, True), refused.stderr
    assert kept.read_text() == "mine"
    shell.start("mqtool", "ui", "--record", "new.html", ready=False).wait_for_stdout("#").interrupt().wait()
    assert (shell.directory / "new.html").stat().st_mode & 0o777 == 0o600


@on_any_broker
@pytest.mark.parametrize("kind", ["link", "file"])
def test_ui_record_does_not_write_to_a_file_that_has_replaced_its_own(shell: Shell, kind: str) -> None:
    """If the FILE of `mqtool ui --record FILE` is replaced while the command runs, by a symbolic link or by a file
    that others can read, the command exits with 2. The error says that another file has replaced FILE, and the
    command writes neither to that file nor to the link's target.
    """
    ui = shell.start("mqtool", "ui", "--record", "seen.html", ready=False).wait_for_stdout("#")
    file, precious = shell.directory / "seen.html", shell.directory / "precious"
    precious.write_text("precious")
    file.unlink()
    if kind == "link":
        file.symlink_to(precious)
    else:
        file.write_text("precious")
    assert ui.interrupt().wait().code == 2
    assert "cannot write seen.html: another file has taken its place meanwhile" in ui.stderr
    assert file.read_text() == precious.read_text() == "precious"
    assert file.is_symlink() == (kind == "link")


@on_any_broker
def test_ui_record_creates_its_file_again_if_it_was_deleted(shell: Shell) -> None:
    """If the FILE of `mqtool ui --record FILE` is deleted while the command runs, the command creates FILE again when
    it ends, with the recording. Only the owner can read this file.
    """
    ui = shell.start("mqtool", "ui", "--record", "seen.html", ready=False).wait_for_stdout("#")
    file = shell.directory / "seen.html"
    file.unlink()
    assert ui.interrupt().wait().code == 0, ui.stderr
    assert file.read_bytes().startswith(b"<!doctype html>")
    assert file.stat().st_mode & 0o777 == 0o600
