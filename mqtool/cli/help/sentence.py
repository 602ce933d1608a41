"""The sentence that lists and completion show beside a command."""


def sentence_of(text: str) -> str:
    """Return the first paragraph of a command's help, without its full stop. typer would cut off a long one."""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")
