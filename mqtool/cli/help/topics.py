"""What there is to know besides the commands: `mqtool help TOPIC`. The texts are in topics/, one file each."""

from importlib import resources

from mqtool.cli.display.received import TEMPLATE_PLACES

#: In the order in which they are listed.
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
)


def topic_text(name: str) -> tuple[str, str]:
    """The title of a topic, and its paragraphs; one whose lines are indented is a table of two columns."""
    title, _, text = (
        resources.files("mqtool.cli.help").joinpath(f"topics/{name}.txt").read_text("utf-8").partition("\n")
    )
    places = "\n".join(f"  %{letter}  {meaning}" for letter, meaning in TEMPLATE_PLACES.items())
    return title, text.strip().replace("{places}", places)
