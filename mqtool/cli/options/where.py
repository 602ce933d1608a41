"""--where: which messages."""

from typing import Annotated, Any

from typer import Option


def condition(text: str) -> Any:
    """A condition on messages, a mqtool.where.Where. Raises BadExpression as where.parse() does."""
    from mqtool.where import parse  # only where there is one: it takes a few milliseconds to import

    return parse(text)


#: For an option of its own kind, such as one in another panel.
WHERE = dict[str, Any](parser=condition, metavar="CONDITION")

Where = Annotated[Any | None, Option("--where", help="Only messages that match (mqtool help where)", **WHERE)]
