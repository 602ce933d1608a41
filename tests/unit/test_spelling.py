"""Which queue names count as misspellings of existing ones, so that receivers do not declare them."""

import pytest

from mqtool.spelling import mistyped


@pytest.mark.parametrize("word", ["invoicse", "invoice", "invoicess", "imvoices", "Invoices", "in-voices"])
def test_a_queue_name_with_one_slip_is_a_misspelling(word: str) -> None:
    """A queue name counts as a misspelling of an existing one if the two differ in one letter, two swapped letters,
    case or separators.
    """
    assert mistyped(word, ["audit", "invoices"]) == "invoices"


@pytest.mark.parametrize(
    ("word", "name"),
    [("jobs", "jobs"), ("jobs-1", "jobs-2"), ("jobs", "jobs2"), ("log.a", "log.b"), ("orders", "orders.dlq"),
     ("task", "task_queue"), ("a", "b"), ("in", "on"), ("eu-orders", "us-orders"), ("..", "...")],
)  # fmt: skip
def test_a_queue_name_with_another_number_or_word_is_not_a_misspelling(word: str, name: str) -> None:
    """A queue name does not count as a misspelling of an existing one if they differ in a number, a one-letter word or
    a whole word, or if they are short.
    """
    assert mistyped(word, [name]) is None
