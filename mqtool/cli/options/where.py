"""--where: which messages."""

from typing import Annotated, Any

import typer

from mqtool.where import Where as Condition
from mqtool.where import parse


def condition(text: str) -> Condition:
    """A condition on messages. Raises BadExpression as parse() does."""
    return parse(text)


#: For an option of its own kind, such as one in another panel.
WHERE = dict[str, Any](parser=condition, metavar="CONDITION")

Where = Annotated[
    Condition | None, typer.Option("--where", help="Only messages that match (mqtool help where)", **WHERE)
]
