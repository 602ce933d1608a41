"""Which names a receiver takes for misspellings of others, and refuses to declare."""

import pytest

from mqtool.spelling import mistyped


@pytest.mark.parametrize("word", ["invoicse", "invoice", "invoicess", "imvoices", "Invoices", "in-voices"])
def test_a_name_with_one_slip_is_a_misspelling(word: str) -> None:
    """A letter more, less or changed, two neighbours swapped, other case, other separators."""
    assert mistyped(word, ["audit", "invoices"]) == "invoices"


@pytest.mark.parametrize(
    ("word", "name"),
    [("jobs", "jobs"), ("jobs-1", "jobs-2"), ("jobs", "jobs2"), ("log.a", "log.b"), ("orders", "orders.dlq"),
     ("task", "task_queue"), ("a", "b"), ("in", "on"), ("eu-orders", "us-orders"), ("..", "...")],
)  # fmt: skip
def test_a_name_that_tells_two_queues_apart_is_not_a_misspelling(word: str, name: str) -> None:
    """Numbers, single letters, short names and whole words do that."""
    assert mistyped(word, [name]) is None
