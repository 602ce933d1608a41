"""Lists: conditions, order, values as text, and JSON arrays that arrive in pieces."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, count, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.errors import BadAnswer, Unavailable, UsageError
from mqtool.inspection.listing import BINDINGS, LISTINGS, QUEUES, in_order
from mqtool.management import Management, limits, path
from mqtool.management.api_client import Json, objects
from mqtool.spelling import as_text, counted
from mqtool.where import parse

ROW = {"name": "logs.eu", "messages": 5, "durable": True, "state": None}


class JustStarted(Management):
    """The management API of a RabbitMQ whose node reports its applications only in the third answer."""

    def __init__(self) -> None:
        self.asked = 0

    def items(self, *_: Any, **__: Any) -> Iterator[Json]:
        """Answer a request for the nodes."""
        self.asked += 1
        web = {"name": "rabbitmq_web_dispatch", "version": "3.10.8", "description": "Web"}
        reported = {"enabled_plugins": [], "applications": [web]} if self.asked > 2 else {}
        yield {"name": "rabbit@here", "running": True, **reported}


def test_plugins_of_a_node_that_has_just_started_are_listed() -> None:
    """If a node has just started, `list plugins` waits for the node's first report instead of printing an
    empty list.
    """
    api = JustStarted()
    assert [row["name"] for row in LISTINGS["plugins"].rows(api, None, ["name"])] == ["rabbitmq_web_dispatch"]
    assert api.asked == 3


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("messages>4", True),
        ("messages>5", False),
        ("messages>=5", True),
        ("messages<=4.5", False),
        ("messages = 5", True),
        ("name=logs.eu", True),
        ("name!=logs.eu", False),
        ("name~^logs", True),
        ("name~^eu", False),
        ("durable=true", True),
        ("state=''", False),
        ("state>0", False),
        ("state~'.*'", False),
    ],
)
def test_a_condition_on_a_list_matches_rows_by_the_values_in_their_columns(text: str, holds: bool) -> None:
    """A `--where` condition on the output of `list queues`, or of a similar command, compares a column with a number, a
    string, a pattern or a boolean: `messages>4` matches a row with 5 messages, and `name~^logs` a row whose name starts
    with "logs". If the broker reports no value for a column, no comparison with this column matches, not even
    `state~'.*'`.
    """
    assert parse(text, ROW.keys()).matches({name: each for name, each in ROW.items() if each is not None}) is holds


def test_rows_without_a_value_are_sorted_last() -> None:
    """When a list, such as `list queues`, is sorted by a column, rows without a value in this column come last in both
    directions. Rows with equal values are sorted by the next column, or keep their order.
    """
    rows = [{"n": 2, "m": "b"}, {"n": None, "m": "x"}, {"n": 10, "m": "c"}, {"n": 2, "m": "a"}]
    assert [row["m"] for row in in_order(rows, ["n"])] == ["b", "a", "c", "x"]
    assert [row["m"] for row in in_order(rows, ["-n", "m"])] == ["c", "a", "b", "x"]


def test_the_hint_for_an_unknown_column_names_the_most_similar_one_or_all() -> None:
    """If a list, such as `list queues`, has no column with the given name, the hint names the most similar column, or
    all columns if none is similar. If the user has separated columns with commas, the hint says to use spaces.
    """
    with pytest.raises(UsageError, match="no column 'mesages_ready'") as caught:
        QUEUES.check(["name", "mesages_ready"])
    assert caught.value.hint == "did you mean 'messages_ready'?"
    with pytest.raises(UsageError) as caught:
        QUEUES.check(["name,messages"])
    assert caught.value.hint == "separate columns with spaces: name messages"
    with pytest.raises(UsageError) as caught:
        BINDINGS.check(["nothing"])
    assert "source_name" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (0, "0"),
        (["a", "b"], "a,b"),
        ([], ""),
        ({}, ""),
        ({"b": 1, "a": [2]}, '{"a":[2],"b":1}'),
    ],
    ids=repr,
)
def test_list_commands_print_values_as_plain_text_or_json(value: Any, text: str) -> None:
    """`list queues` and similar commands print booleans, numbers and lists of words as plain text, and tables as JSON
    with sorted keys. For a missing value, an empty list or an empty table, they print nothing.
    """
    assert as_text(value) == text


def test_nouns_agree_with_their_numbers() -> None:
    """mqtool prints "1 message" in the singular, but "0 messages" and "1,000 findings" in the plural."""
    assert [counted(0), counted(1), counted(1000, "finding")] == ["0 messages", "1 message", "1,000 findings"]


@given(
    st.lists(
        # mqtool checks the types of other keys, such as "name".
        st.dictionaries(
            st.text(max_size=5).map("x-{}".format), st.text(max_size=20) | st.integers() | st.none(), max_size=3
        ),
        max_size=8,
    ),
    st.integers(1, 40),
    st.sampled_from([None, 2]),
)
def test_a_json_array_can_arrive_in_pieces_of_any_size(
    items: list[dict[str, Any]], size: int, indent: int | None
) -> None:
    """A list from the management API is decoded to the same objects wherever the response is divided as it arrives,
    even in the middle of a string or between the bytes of a character.
    """
    data = json.dumps(items, ensure_ascii=False, indent=indent).encode("utf-8", "surrogatepass")
    assert list(objects(data[at : at + size] for at in range(0, len(data), size))) == items


@pytest.mark.parametrize("size", [9_999, 1_000_000])
@pytest.mark.parametrize("depth", [100, 5000])
def test_levels_of_arguments_that_are_nested_too_deeply_are_replaced_by_a_string(size: int, depth: int) -> None:
    """RabbitMQ accepts queues with deeply nested arguments. If the management API lists such a queue as a JSON object
    of more than 64 levels, the string "(nested too deeply)" replaces the levels below the 64th. All other values in
    the list are decoded.
    """
    nested = b'["[",' * depth + b'"x"' + b',{"y\\\\":"["}]' * depth
    data = b'[{"a":[["]"]]},{"b\\"[":%s,"c":"]}"},{"d":[%s{}]}]' % (nested, b"{}," * 99)
    first, deep, last = objects(data[at : at + size] for at in range(0, len(data), size))
    assert (first, deep["c"], last) == ({"a": [["]"]]}, "]}", {"d": [{}] * 100})
    inner = deep['b"[']
    while isinstance(inner[1], list):
        assert (inner[0], inner[2]) == ("[", {"y\\": "["})
        inner = inner[1]
    assert inner[1] == "(nested too deeply)"
    levels = b'[{"a":' + b"[" * 63 + b"%s" + b"]" * 63 + b"}]"  # the queue is the first of 64
    for innermost, decoded in ((b"5", b"5"), (b"[5]", b'"(nested too deeply)"')):
        assert list(objects([levels % innermost])) == json.loads(levels % decoded)


@contextmanager
def responding(response: Callable[[], Iterable[bytes]]) -> Iterator[Management]:
    """Run a web server that sends the parts of a response to each request, unless the client goes away."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for part in response():
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Management(f"http://127.0.0.1:{server.server_port}", "guest", "guest")
        finally:
            server.shutdown()
            thread.join()


def overview(answer: bytes) -> Any:
    """Ask a web server with this answer for the overview of the management API."""
    with responding(lambda: [answer]) as api:
        return api.get(path("overview"))


def test_reading_an_endless_response_of_the_management_api_fails_after_32_mib() -> None:
    """If mqtool requests a single value from the management API, and the server's response does not end, the request
    fails with Unavailable after 32 MiB.
    """
    endless = responding(lambda: chain([b"["], repeat(b"0," * 100_000)))
    with endless as api, pytest.raises(Unavailable, match="more than 32 MiB"):
        api.get(path("overview"))


def test_reading_an_endless_object_in_a_list_fails_after_32_mib() -> None:
    """If an object in a list from the management API does not end, the request fails with Unavailable after 32 MiB."""
    endless = responding(lambda: chain([b'[{"name": "'], repeat(b"x" * 100_000)))
    with endless as api, pytest.raises(Unavailable, match="more than 32 MiB"):
        list(api.items("vhosts"))


def test_reading_an_endless_list_from_the_management_api_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a list from the management API does not end, the request fails with Unavailable once the list exceeds the
    limit on its size in bytes or the limit on its number of objects. The second limit is needed because many small
    objects need much memory, even if they take up few bytes in the response.
    """
    monkeypatch.setattr(limits, "MOST_OBJECTS", 100_000)
    monkeypatch.setattr(limits, "LARGEST_LIST", 20 << 20)
    short, long = b'{"name":""},' * 1000, b'{"name":"%s"},' % (b"x" * 1_000_000)
    for part, limit in ((short, "100,000 objects"), (long, "20 MiB"), (b" " * 1_000_000, "20 MiB")):
        endless = responding(lambda part=part: chain([b"["], repeat(part)))  # type: ignore[misc]
        with endless as api, pytest.raises(Unavailable, match=f"more than {limit}"):
            for _ in api.items("vhosts"):
                pass


def test_a_management_api_request_whose_response_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server sends its response to a management API request byte by byte, no single read times out. The request
    nevertheless fails with Unavailable once the time limit for the whole response has passed.
    """
    monkeypatch.setattr(limits, "LONGEST", 0.2)
    stop = threading.Event()
    slow = responding(lambda: (b" " for _ in iter(lambda: stop.wait(0.01), True)))
    with slow as api, pytest.raises(Unavailable, match="takes more than"):
        api.get(path("overview"))
    stop.set()


def test_a_page_of_the_management_api_can_exceed_the_limit_for_a_single_object() -> None:
    """If a response of the management API contains a single object, mqtool reads at most 32 MiB. This limit does not
    apply to a page of the list of queues, because any user who can declare queues can add to such a page. mqtool reads
    all queues on a page of more than 32 MiB.
    """
    page = b'{"items": [%s], "page_count": 1}' % b",".join([b'{"name":"%s"}' % (b"x" * 120_000)] * 300)
    with responding(lambda: [page]) as api:
        assert len(list(api.pages("queues"))) == 300


def test_a_list_with_more_pages_than_any_broker_has_is_refused() -> None:
    """If a server announces that a list of the management API has 1,000,000,000 pages, far more than any real broker's
    list, the request fails with Unavailable, and mqtool requests no further page.
    """
    requests = count(1)

    def respond() -> Iterator[bytes]:
        next(requests)
        yield b'{"items": [{"name": "q"}], "page_count": 1000000000}'

    with responding(respond) as api, pytest.raises(Unavailable, match="a list of 1,000,000,000 pages"):
        list(api.pages("queues"))
    assert next(requests) == 2


@pytest.mark.parametrize("page", [b"{}", b"null", b'{"items": {}, "page_count": 1}', b'{"items": []}'])
def test_a_page_that_contains_no_list_of_objects_is_not_from_a_management_api(page: bytes) -> None:
    """If mqtool requests a page of a list, and the server responds with JSON that contains no list of objects or no
    number of pages, the request fails with Unavailable. The error says that the server is not a management API.
    """
    with responding(lambda: [page]) as api, pytest.raises(Unavailable, match="is not a management API"):
        list(api.pages("queues"))


def test_an_empty_array_in_place_of_an_object_is_read_as_an_empty_object() -> None:
    """If the management API sends [] instead of {}, as RabbitMQ does if it has no statistics of a node or if a
    channel has been closed, mqtool reads an empty object. A null value is treated as missing.
    """
    node = b'[[], {"name": null, "type": null, "arguments": [], "queue": [], "incoming": [{"channel_details": []}]}]'
    assert list(objects([node])) == [{}, {"arguments": {}, "queue": {}, "incoming": [{"channel_details": {}}]}]


def test_a_list_of_the_management_api_ends_at_an_empty_page() -> None:
    """If a page of a list from the management API is empty, mqtool takes the list to be complete, even if the server
    announces 2,000 pages. It requests no further pages, except a few that it has requested in advance.
    """
    requests = count(1)

    def respond() -> Iterator[bytes]:
        yield b'{"items": [%s], "page_count": 2000}' % (b"{}" if next(requests) == 1 else b"")

    with responding(respond) as api:
        assert list(api.pages("queues")) == [{}]
    assert next(requests) < 9


def test_a_response_that_only_begins_with_json_is_not_from_a_management_api() -> None:
    """If a server's response to a management API request is a JSON value followed by other text, the request fails with
    Unavailable. The error says that the server is not a management API.
    """
    with pytest.raises(Unavailable, match="is not a management API"):
        overview(b"200 requests served")


def test_surrogates_in_a_response_of_the_management_api_are_decoded() -> None:
    """If a response of the management API contains the encoded bytes of a surrogate (U+D800 to U+DFFF), which are not
    valid UTF-8, mqtool decodes them to this surrogate.
    """
    assert overview(b'{"cluster_name": "\xed\xa0\x80"}') == {"cluster_name": "\ud800"}


@pytest.mark.parametrize("data", [b"", b'{"error": 1}', b'[{"a": 1}', b'[{"a": '])
def test_an_incomplete_json_array_is_an_error(data: bytes) -> None:
    """If a list from the management API is not a JSON array, or is cut short, decoding it raises an error, so that a
    list is never silently incomplete.
    """
    with pytest.raises((BadAnswer, ValueError), match=r"not a list|cut short"):
        list(objects([data]))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_would_change_a_management_path_are_refused(name: str) -> None:
    """If a name in a URL path of the management API is "", "." or "..", UsageError is raised, because the path would
    refer to another object. Other names are percent-encoded.
    """
    with pytest.raises(UsageError):
        path("vhosts", name)
    assert path("queues", "/", "a/b c%") == "queues/%2F/a%2Fb%20c%25"
