"""Lays out the help as plain text for any terminal width: --help, --help-all, 'mqtool help TOPIC'."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

from mqtool.cli.display.delivery_writer import TEMPLATE_PLACES
from mqtool.cli.help.description import CommandHelp, OptionHelp

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
    return title, text.strip().replace("{places}", places)


#: The column where the options' descriptions start if the terminal is wide enough.
_INDENT = 26
_NARROW = 70
#: A heading of `mqtool --help` under which only names are listed.
_NAMES_ONLY = "Manage"
#: Rows of `mqtool --help`: commands that share a row, or need a shorter description than their own.
_TOGETHER = {
    ("send", "receive"): "Send and receive messages (tutorial 1)",
    ("new-task", "worker"): "Share tasks among workers (tutorial 2)",
    ("emit-log", "receive-log"): "Publish and subscribe (tutorials 3, 4, 5)",
    ("rpc-client", "rpc-server"): "Requests and replies (tutorial 6)",
    ("send-delayed", "receive-delayed"): "Send and receive delayed messages",
    ("send-stream", "receive-stream"): "Append to a stream, and read it",
    ("offset",): "Stored offsets of a stream's readers",
    ("cheat", "help", "completion"): "Recipes, help, and shell completion",
    ("topology", "route"): "Show bindings, and explain routes",
    ("peek", "tap"): "Look at messages without consuming them",
    ("publisher-confirms",): "Publish with confirms (tutorial 7)",
    ("tutorial",): "Read the tutorials, and see them run",
    ("drill",): "Break something, and count lost messages",
    ("list",): "List queues, consumers and more",
    ("move",): "Move messages to another queue",
    ("delayed",): "Show, cancel, deliver or relay delayed messages",
    ("dlq",): "Show, redrive or drop dead letters",
}
_WIDEST = 100


def equivalent(name: str) -> str | None:
    """Return the mqtool command that replaces a rabbitmqctl command or a tutorial's script; None if there is none."""
    stem = name.rpartition("/")[2].partition(".")[0].replace("-", "_").lower()
    rows = (line.strip().partition("  ") for line in topic_text("rabbitmqctl")[1].splitlines() if line[:2] == "  ")
    return next((ours for theirs, _, ours in rows if theirs.partition(".")[0] == stem), None)


def width() -> int:
    """Return the width of the terminal, up to 100 columns."""
    return min(shutil.get_terminal_size().columns, _WIDEST)


def command_page(command: CommandHelp, columns: int, *, everything: bool = False) -> str:
    """Return the help of a command or a group.

    Args:
        columns: the line width.
        everything: show all options, not only the common ones.
    """
    return "\n".join(_command_lines(command, columns, everything=everything)).rstrip()


def topic_page(name: str, options: Sequence[OptionHelp], columns: int) -> str:
    """Return the page of a topic: its text and its options."""
    title, text = topic_text(name)
    lines = [*textwrap.wrap(title, columns), ""]
    for paragraph in text.split("\n\n"):
        is_table = paragraph.startswith("  ")
        lines += _table(paragraph, columns) if is_table else textwrap.wrap(paragraph, columns)
        lines.append("")
    if options:
        lines += ["Options:", *_rows(((option.syntax, _text(option)) for option in options), columns)]
    return "\n".join(lines).rstrip()


def start_page() -> str:
    """Return the page that `mqtool` prints without arguments: how to get started."""
    return textwrap.dedent("""\
        mqtool: learn, script and operate RabbitMQ from the command line

        Start here:
          mqtool tutorial run hello-world   watch the first tutorial
          mqtool broker up                  start a broker for yourself
          mqtool send 'Hello World!'        send a message; 'mqtool receive' receives it

        All commands: mqtool --help""")


def overview_page(mqtool: CommandHelp, columns: int) -> str:
    """Return the page of `mqtool --help`: all commands by heading, and the topics."""
    lines = ["usage: mqtool COMMAND", *textwrap.wrap(mqtool.sentence, columns), ""]
    panels = dict.fromkeys(command.panel for command in mqtool.commands)
    for panel in panels:
        commands = [command for command in mqtool.commands if command.panel == panel]
        lines.append(f"{panel}:")
        if panel == _NAMES_ONLY:
            names = ", ".join(command.words[0] for command in commands)
            lines += textwrap.wrap(names, columns, initial_indent="  ", subsequent_indent="  ")
        else:
            lines += _rows(_together(commands), columns, indent=33 if columns >= _NARROW else 22)
    topics = f"Help: mqtool COMMAND --help, or mqtool help with a topic: {', '.join(TOPICS)}"
    lines += textwrap.wrap(topics, columns, break_on_hyphens=False)
    return "\n".join(lines)


def _together(commands: Sequence[CommandHelp]) -> Iterator[tuple[str, str]]:
    """Yield rows of names and text. Related commands, such as send and receive, share a row."""
    names = [command.words[0] for command in commands]
    for command in commands:
        name = command.words[0]
        pair, text = next(((pair, text) for pair, text in _TOGETHER.items() if name in pair), ((name,), ""))
        if name == next(each for each in names if each in pair):
            yield ", ".join(pair), text or command.sentence


def _command_lines(command: CommandHelp, columns: int, *, everything: bool) -> Iterator[str]:
    yield from textwrap.wrap(f"usage: {command.usage}", columns, subsequent_indent="  ")
    yield ""
    yield from textwrap.wrap(command.sentence, columns)
    for paragraph in command.details:
        yield ""
        yield from textwrap.wrap(paragraph, columns)
    if command.examples:
        yield from ("", "Examples:", *(f"  {example}" for example in command.examples))
    if command.commands:
        yield from ("", "Commands:")
        yield from _rows([(below.words[-1], below.sentence) for below in command.commands], columns, indent=16)
        yield from ("", "Help on one of them:", f"  {command.path} COMMAND --help")
    if any(argument.text for argument in command.arguments):
        yield from ("", "Arguments:")
        yield from _rows([(argument.name.strip("[]"), argument.text) for argument in command.arguments], columns)
    shown = [option for option in command.options if everything or option.is_common]
    if shown:
        yield from ("", "Options:")
        yield from _rows([(option.syntax, _text(option)) for option in shown], columns)
    if not everything and len(shown) < len(command.options):
        yield from ("", "More options:")
        yield from _hidden(command, columns)


def _hidden(command: CommandHelp, columns: int) -> Iterator[str]:
    """Yield lines that say how to show the less common options: a line for each section, and one for all of them."""
    hidden = [option for option in command.options if not option.is_common]
    rows = []
    for topic in dict.fromkeys(option.topic for option in hidden):
        first = [option.flags[-1] for option in hidden if option.topic == topic]
        count = f" and {len(first) - 2} more" if len(first) > 2 else ""
        rows.append((f"mqtool help {topic}", ", ".join(first[:2]) + count))
    yield from _rows(rows, columns)
    yield from _rows([(f"{command.path} --help-all", "all of them")], columns)


def _text(option: OptionHelp) -> str:
    return f"{option.text} {option.notes}".strip()


def _rows(rows: Iterable[tuple[str, str]], columns: int, indent: int = _INDENT) -> Iterator[str]:
    """Lay out two columns. The second goes below the first if the first is too long or the terminal too narrow."""
    for name, text in rows:
        if columns < _NARROW and indent == _INDENT:
            lead, hang = f"  {name}", " " * 6
            yield from textwrap.wrap(lead, columns, subsequent_indent=hang, break_on_hyphens=False)
            lead = hang
        else:
            lead, hang = f"  {name}".ljust(indent), " " * indent
            if not lead.endswith("  "):
                yield from textwrap.wrap(lead, columns, subsequent_indent=hang, break_on_hyphens=False)
                lead = hang
        if text:
            yield from textwrap.wrap(text, columns, initial_indent=lead, subsequent_indent=hang, break_on_hyphens=False)
        elif lead.strip():
            yield lead.rstrip()


def _table(paragraph: str, columns: int) -> Iterator[str]:
    """Lay out a table in a help topic, where two or more spaces separate the columns."""
    for line in paragraph.splitlines():
        name, _, text = line.strip().partition("  ")
        yield from _rows([(name, text.strip())], columns, indent=20) if text else [line]
