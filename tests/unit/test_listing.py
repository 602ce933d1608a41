"""Lists: conditions, order, texts; and JSON arrays that come in pieces."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.errors import UsageError
from mqtool.inspection.listing import BINDINGS, LISTINGS, QUEUES, in_order
from mqtool.management import Management, path
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
    """A node's first report comes seconds after its start. Until then, `list plugins` waits: it never says "none"."""
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
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    """Numbers are compared as numbers; a value that the broker leaves out never matches."""
    assert parse(text, ROW.keys()).matches({name: each for name, each in ROW.items() if each is not None}) is holds


def test_order_puts_what_is_not_told_last() -> None:
    """Both ways; equal ones stay as they came, so that a second column decides."""
    rows = [{"n": 2, "m": "b"}, {"n": None, "m": "x"}, {"n": 10, "m": "c"}, {"n": 2, "m": "a"}]
    assert [row["m"] for row in in_order(rows, ["n"])] == ["b", "a", "c", "x"]
    assert [row["m"] for row in in_order(rows, ["-n", "m"])] == ["c", "a", "b", "x"]


def test_a_wrong_column_names_the_nearest_and_all() -> None:
    """So that one look is enough: the nearest, or all where none is near."""
    with pytest.raises(UsageError, match="no column 'mesages_ready'") as caught:
        QUEUES.check(["name", "mesages_ready"])
    assert caught.value.hint == "did you mean 'messages_ready'?"
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
)
def test_values_as_text(value: Any, text: str) -> None:
    """Plain where a plain word will do, else JSON."""
    assert as_text(value) == text


def test_counting() -> None:
    """One is one."""
    assert [counted(0), counted(1), counted(1000, "finding")] == ["0 messages", "1 message", "1,000 findings"]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3), max_size=8
    ),
    st.integers(1, 40),
    st.sampled_from([None, 2]),
)
def test_an_array_comes_whole_however_it_is_cut(items: list[dict[str, Any]], size: int, indent: int | None) -> None:
    """In the middle of an object, a string, an escape, or a character of several bytes."""
    data = json.dumps(items, ensure_ascii=False, indent=indent).encode("utf-8", "surrogatepass")
    assert list(objects(data[at : at + size] for at in range(0, len(data), size))) == items


@pytest.mark.parametrize("data", [b"", b'{"error": 1}', b'[{"a": 1}', b'[{"a": '])
def test_an_array_that_is_none_or_cut_short_is_an_error(data: bytes) -> None:
    """Rather than a list that is shorter than it should be."""
    with pytest.raises(ValueError, match=r"not a list|cut short"):
        list(objects([data]))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_path_cannot_lose_a_name(name: str) -> None:
    """DELETE vhosts/.. would be about something else."""
    with pytest.raises(UsageError):
        path("vhosts", name)
    assert path("queues", "/", "a/b c%") == "queues/%2F/a%2Fb%20c%25"
