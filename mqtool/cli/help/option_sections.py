"""The sections of a command's options, each explained by a topic of `mqtool help`.

An option is in the section that its `rich_help_panel` names.
"""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from mqtool.duration import compact_duration


class Section(NamedTuple):
    """A section of the help.

    Attributes:
        topic: the help topic that lists all of the section's options.
        common: the options that --help shows; the others are shown by --help-all and by the topic.
        foremost: the option that --help names first among the others, if the command has it.
    """

    topic: str
    common: frozenset[str]
    foremost: str = ""

    def shows(self, flags: Collection[str]) -> bool:
        """Return True if --help shows the option with these flags."""
        return not self.common.isdisjoint(flags)


SECTIONS = {
    "Topology": Section(
        "declaring", frozenset({"--queue", "--exchange", "--routing-key", "--durable", "--queue-type", "--dialect"})
    ),
    "Messages": Section(
        "messages", frozenset({"--file", "--lines", "--json", "--header", "--key-pattern", "--count", "--every"})
    ),
    "Delay": Section("delays", frozenset({"--delay"})),
    "Receiving": Section(
        "receiving", frozenset({"--count", "--until-empty", "--idle-timeout", "--prefetch", "--offset", "--track"})
    ),
    "Programs": Section("programs", frozenset({"--exec", "--concurrency"})),
    "Retries": Section("retries", frozenset({"--retries"})),
    "Duplicates": Section("duplicates", frozenset({"--deduplicate"})),
    "Printing": Section("output", frozenset({"--raw", "--json", "--format", "--output"})),
    "Load": Section(
        "benchmarks",
        frozenset(
            {"--rate", "--duration", "--count", "--size", "--publishers", "--consumers", "--queue-type", "--at"}
            | {"--vary"}
        ),
    ),
    "Broker": Section("connection", frozenset({"--url", "--context"}), "--protocol"),
}


def help_record(parameter: Any, context: Any) -> Any:
    """Return the syntax and the text of a parameter, None if it is hidden. A duration's default has a unit: 30s."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    text = re.sub(r"(?<=default: )\((.*?)\)(?=[];])", r"\1", record[1])
    if parameter.metavar == "DURATION":
        text = re.sub(r"(?<=\[default: )[\d.]+(?=[];])", lambda found: compact_duration(float(found[0])), text)
    return record[0], text
