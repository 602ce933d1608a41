"""Which queue names count as misspellings of existing ones, and how rates are printed."""

import pytest

from mqtool.spelling import in_time, mistyped


@pytest.mark.parametrize("word", ["invoicse", "invoice", "invoicess", "imvoices", "Invoices", "in-voices"])
def test_a_queue_name_that_differs_in_one_letter_or_case_is_a_misspelling(word: str) -> None:
    """A queue name counts as a misspelling of an existing one if the two differ in one letter, in two swapped letters,
    in case or in separators.
    """
    assert mistyped(word, ["audit", "invoices"]) == "invoices"


@pytest.mark.parametrize(
    ("word", "name"),
    [("jobs", "jobs"), ("jobs-1", "jobs-2"), ("jobs", "jobs2"), ("log.a", "log.b"), ("orders", "orders.dlq"),
     ("task", "task_queue"), ("a", "b"), ("in", "on"), ("eu-orders", "us-orders"), ("..", "...")],
)  # fmt: skip
def test_a_queue_name_with_another_number_or_word_is_not_a_misspelling(word: str, name: str) -> None:
    """A queue name does not count as a misspelling of an existing one if the two differ in a number, a one-letter word
    or a whole word, or if they are very short.
    """
    assert mistyped(word, [name]) is None


@pytest.mark.parametrize(
    ("count", "seconds", "printed"),
    [(3000, 2.0, "2.0 s (1,500/s)"), (4, 2.5, "2.5 s (1.6/s)"), (1, 10.9, "10.9 s"), (5, 0.008, "less than 0.1 s")],
)
def test_a_rate_that_means_nothing_is_not_printed(count: int, seconds: float, printed: str) -> None:
    """In mqtool's summaries, such as "2.5 s (1.6/s)", a rate below 10/s has one decimal place, and a rate below 0.1/s
    is left out instead of being printed as 0/s, as is a rate measured in less than 0.1 s.
    """
    assert in_time(count, seconds) == printed
