"""The topics of `mqtool help`: explanations of a subject, followed by the options that belong to it."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from mqtool.cli.display.delivery_writer import TEMPLATE_PLACES

#: The topics, in the order in which they are shown.
TOPICS = (
    "connection",
    "delivery",
    "exit-codes",
    "ndjson",
    "durations",
    "messages",
    "receiving",
    "where",
    "output",
    "declaring",
    "delays",
    "programs",
    "retries",
    "duplicates",
    "benchmarks",
    "rabbitmqctl",
)


def topic_text(name: str) -> tuple[str, str]:
    """Return the title and the text of a topic. Indented paragraphs are two-column tables."""
    title, _, text = (
        resources.files("mqtool.cli.help").joinpath(f"topics/{name}.txt").read_text("utf-8").partition("\n")
    )
    places = "\n".join(f"  %{letter}  {meaning}" for letter, meaning in TEMPLATE_PLACES.items())
    return title, text.strip("\n").replace("{places}", places)


def write_topic(name: str, options: Sequence[tuple[str, str]], formatter: Any) -> None:
    """Write the page of a topic: its text, and rows of options, each with its text.

    Args:
        formatter: the formatter of a typer.Context.
    """
    title, text = topic_text(name)
    formatter.write_text(title)
    for paragraph in text.split("\n\n"):
        formatter.write_paragraph()
        if not paragraph.startswith("  "):
            formatter.write_text(paragraph)
            continue
        rows = [line.strip().partition("  ") for line in paragraph.splitlines()]
        with formatter.indentation():
            if any(meaning for _, _, meaning in rows):
                formatter.write_dl([(name, meaning.strip()) for name, _, meaning in rows], col_max=20)
            else:
                formatter.write("".join(f"  {line}\n" for line, _, _ in rows))
    if options:
        with formatter.section("Options"):
            formatter.write_dl(options, col_max=formatter.width // 3)


def equivalent(name: str) -> str | None:
    """Return the mqtool command that replaces a rabbitmqctl command or a tutorial's script; None if there is none."""
    stem = name.rpartition("/")[2].partition(".")[0].replace("-", "_").lower()
    rows = re.findall(r"(?m)^  (\S+)  (.*)", topic_text("rabbitmqctl")[1])
    return next((ours for theirs, ours in rows if theirs.partition(".")[0] == stem), None)
