"""Writes the pages of docs/reference that describe commands, dialects and the Python interface: make docs.

Also writes docs/mqtool.1, index.py and tutorials.txt in mqtool/cli/help, and the table of scripts in
docs/how-to/older-tutorials.md.
"""

import functools
import hashlib
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mqtool import __version__, plays
from mqtool.cli.commands import whole_tree
from mqtool.cli.help.description import CommandHelp, OptionHelp, describe, leaves, topic_options
from mqtool.cli.help.help_topics import TOPICS, topic_text
from mqtool.cli.help.option_sections import SECTIONS
from mqtool.cli.help.overview import overview
from mqtool.topology import Exchange, Stream
from mqtool.tutorials import pages as tutorial_pages
from mqtool.tutorials.dialects import LINES, NAMES, Dialect, DialectLines
from mqtool.tutorials.stream_dialects import HELLO, TRACKING, StreamDialect
from tests.cli import tutorial_comparisons

_REFERENCE = Path(__file__).parent / "reference"
#: The index of commands, and the directory of the pages that describe them.
COMMANDS, COMMAND_PAGES = _REFERENCE / "commands.md", _REFERENCE / "commands"
DIALECTS = _REFERENCE / "dialects.md"
NOTATION = _REFERENCE / "notation.md"
PYTHON = _REFERENCE / "python.md"
MANUAL = Path(__file__).parent / "mqtool.1"
OLDER_TUTORIALS = Path(__file__).parent / "how-to" / "older-tutorials.md"
INDEX = Path(__file__).parents[1] / "mqtool" / "cli" / "help" / "index.py"
#: The rows of `tutorial list`.
TUTORIAL_ROWS = INDEX.with_name("tutorials.txt")


@functools.cache
def described() -> CommandHelp:
    """Return the description of all commands. Building it takes a second, so this is not done on import."""
    return describe(whole_tree())


#: The headings of `mqtool --help`, in their order. Each has a page of the reference.
_HEADINGS = ("Tutorials", "Learn", "Broker", "See", "Messages", "Manage")
_SHARED = "shared-options"


def reference() -> dict[Path, str]:
    """Return the pages of the command reference in Markdown: the index, a page per heading, and the shared options."""
    rows = (line.split("  ")[1] for line in overview().splitlines() if line.startswith("  "))
    order = [name for row in rows for name in row.split(", ")]
    commands = sorted(described().commands, key=lambda command: order.index(command.words[0]))
    below = {heading: [each for each in commands if each.heading == heading] for heading in _HEADINGS}
    pages = {COMMANDS: _index_page(below), COMMAND_PAGES / f"{_SHARED}.md": _shared_options()}
    for heading, commands in below.items():
        parts = [f"# Commands: {heading.lower()}", "See also [all commands](../commands.md)."]
        for command in (leaf for each in commands for leaf in leaves(each)):
            parts += _command(command)
        pages[COMMAND_PAGES / f"{heading.lower()}.md"] = "\n\n".join(parts) + "\n"
    return pages


def _index_page(below: dict[str, list[CommandHelp]]) -> str:
    parts = ["# Commands", f"{described().sentence}. `mqtool help` lists the commands in your terminal."]
    for heading, commands in below.items():
        page = f"commands/{heading.lower()}.md"
        rows = [
            f"- [`{leaf.path}`]({page}#{leaf.path.replace(' ', '-')}): {leaf.sentence}"
            for each in commands
            for leaf in leaves(each)
        ]
        parts += [f"## {heading}", "\n".join(rows)]
    topics = [f"- [{topic}](commands/{_SHARED}.md#{topic}): {title}" for topic, title in _shared_topics().items()]
    parts += ["## Shared options", "Many commands have the same options:", "\n".join(topics)]
    names = "\n".join(f"commands/{name}" for name in (*(heading.lower() for heading in _HEADINGS), _SHARED))
    parts.append(f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{names}\n```")
    return "\n\n".join(parts) + "\n"


def _shared_topics() -> dict[str, str]:
    """Return the topics of `mqtool help` about options that commands share, with their titles."""
    topics = (section.topic for section in SECTIONS.values())
    titles = {topic: topic_text(topic)[0].partition(": ")[2] for topic in topics if topic in TOPICS}
    return {topic: f"{title[0].upper()}{title[1:]}" for topic, title in titles.items()}


def _shared_options() -> str:
    parts = ["# Shared options", "Options that several [commands](../commands.md) have, by topic."]
    for topic, title in _shared_topics().items():
        parts += [f"## {topic}", f"{title}. `mqtool help {topic}` says more."]
        parts.append(_options(topic_options(described(), topic)))
    return "\n\n".join(parts) + "\n"


def _command(command: CommandHelp) -> Iterator[str]:
    yield f"## `{command.path}`"
    yield f"{command.sentence}."
    yield from command.details
    yield f"Usage: `{command.usage}`"
    yield "```bash\n" + "\n".join(command.examples) + "\n```"
    own = [option for option in command.options if not option.topic]
    arguments = [f"- `{argument.syntax}`: {argument.text}" for argument in command.arguments if argument.text]
    if own or arguments:
        yield "\n".join(filter(None, (*arguments, _options(own))))
    shared = dict.fromkeys(option.topic for option in command.options if option.topic in TOPICS)
    if shared:
        yield "Shared options: " + ", ".join(f"[{topic}]({_SHARED}.md#{topic})" for topic in shared) + "."


def _options(options: list[OptionHelp]) -> str:
    return "\n".join(f"- `{option.syntax}`: {option.text}".rstrip() for option in options)


def index() -> str:
    """Return the module from which mqtool knows its commands without importing them."""
    sentences = {command.words[0]: command.sentence for command in described().commands}
    aliases = {alias: " ".join(leaf.words) for leaf in leaves(described()) for alias in leaf.aliases}
    rows = [
        '"""The commands that can follow `mqtool`, and what other tools call them. Written by `make site`."""\n',
        "SENTENCES = {",
        *(f"    {json.dumps(name)}: {json.dumps(sentence)}," for name, sentence in sentences.items()),
        "}",
        "",
        "ALIASES = {",
        *(f"    {json.dumps(alias)}: {json.dumps(meant)}," for alias, meant in sorted(aliases.items())),
        "}",
    ]
    return "\n".join(rows) + "\n"


def tutorials() -> str:
    """Return the rows of `tutorial list`, separated by tabs: number, name, title, summary, and if there is a page."""

    def row(name: str) -> Iterator[str]:
        yield str(tutorial_pages.NUMBERED.index(name) + 1) if name in tutorial_pages.NUMBERED else ""
        yield name
        if name in tutorial_pages.NAMES:
            page = tutorial_pages.page(name)
            yield from (page.title, page.summary.removesuffix("."), "page")
        else:
            play = plays.PLAYS[name]
            yield from (play.title, f"{play.story[0].lower()}{play.story[1:]}".removesuffix("."), "")

    return "".join("\t".join(row(name)) + "\n" for name in plays.PLAYS)


#: The topics of `mqtool help` that are on the page of notation, with the name of each one's heading.
_NOTATION = {"where": "Conditions: `--where`", "output": "Templates: `--format`", "durations": "Durations and times"}


def notation() -> str:
    """The page of the small languages that options are written in: the same texts as in `mqtool help`."""
    parts = [
        "# Conditions, templates and durations\n",
        "`mqtool help where`, `mqtool help output` and `mqtool help durations` print the sections of this page.\n",
    ]
    for name, heading in _NOTATION.items():
        _, text = topic_text(name)
        parts.append(f"## {heading}\n")
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("  "):
                lines = [line.strip().partition("  ") for line in paragraph.splitlines()]
                rows = [f"| `{written}` | {about.strip()} |" for written, _, about in lines]
                parts.append("\n".join(["| notation | meaning |", "|---|---|", *rows]) + "\n")
            else:
                parts.append(re.sub(r"\\[nt\\]", lambda found: f"`{found[0]}`", paragraph) + "\n")
    return "\n".join(parts)


def dialects() -> str:
    """Return the dialects page in Markdown: what each dialect declares and prints, and its default messages."""
    parts = [
        "# Dialects",
        "A dialect is the set of names, settings and printed lines that one version of the tutorials uses. Choose a "
        "dialect with `--dialect` or `MQTOOL_DIALECT`; the default is `python`. To find the right dialect, see "
        "[If you follow another tutorial](../how-to/older-tutorials.md).",
        "## Queues and exchanges",
    ]
    declared = ("hello", "task_queue", "rpc_queue", "fanout", "direct", "topic")
    parts.append(
        _rows([(name, *(_declared(getattr(NAMES[dialect], name)) for dialect in Dialect)) for name in declared])
    )
    parts += [
        "## Printed lines, and default messages",
        "Without `--dialect`, lines with received data go to stdout, and all other lines go to stderr. With "
        "`--dialect`, all lines go where the scripts print them: to stderr if the row `on stderr` says `yes`, otherwise"
        " to stdout. The lines `requesting add100` always go to stdout. So do the lines of `emit-log` if the row `emits"
        " on stdout` says `yes`. The scripts for Go and Elixir begin each line with the time; mqtool does not. `!r` "
        "means that the value is printed as by Python's `repr()`. The rows from `hello` to `number add100` show the "
        "messages, routing keys or requests that commands use if you give none. The rows `usage topic`, `usage code` "
        "and `usage code topic` show the arguments in the usage line, and the exit codes, of `receive-log direct` and "
        "`receive-log topic` without arguments.",
        "The other rows say what the commands do if `--dialect` is given. `properties`: all messages have these "
        "properties. `persistent logs`: `emit-log` sends persistent messages. `worker prefetch`: the prefetch of "
        "`worker`; 0 means no limit. `empty text is missing`: an empty message stands for the default one. `empty word "
        "is missing`: an empty first word of the message, an empty routing key and an empty request stand for the "
        "defaults. `keeps empty logs`: `emit-log` nevertheless sends an empty message. `key in body`: `emit-log direct`"
        " and `emit-log topic` put the routing key in front of the body. `key of two words`: if `emit-log topic` gets "
        "three or more words, it joins the first two with a dot, and uses them as the routing key. `fib of negatives`: "
        "the RPC server answers requests for negative numbers with 0. `purges requests`: the RPC server purges its "
        "queue when it starts.",
    ]
    spoken = [name for name in vars(DialectLines) if not name.startswith("_")]
    parts.append(_rows([(name, *(_shown(getattr(LINES[dialect], name)) for dialect in Dialect)) for name in spoken]))
    parts += [
        "## Streams",
        "`send-stream`, `receive-stream`, `offset send` and `offset receive` have the dialects in this table. A "
        "command that creates a stream gives it the size limit shown in the table.",
        _rows(
            [
                ("hello", *(_stream(HELLO[dialect].stream) for dialect in StreamDialect)),
                ("offset tracking", *(_stream(TRACKING[dialect].stream) for dialect in StreamDialect)),
                ("name of the reader", *(f"`{TRACKING[dialect].subscriber}`" for dialect in StreamDialect)),
            ],
            StreamDialect,
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _stream(stream: Stream) -> str:
    size = stream.arguments.get("max-length-bytes")
    return f"`{stream.name}`: " + ("no limit" if size is None else f"{size // 10**9} GB")


def _rows(rows: list[tuple[str, ...]], dialects: Iterable[str] = Dialect) -> str:
    heads = [f"`{dialect}`" for dialect in dialects]
    head = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*head, *(f"| {row[0].replace('_', ' ')} | " + " | ".join(row[1:]) + " |" for row in rows)])


def _declared(thing: Any) -> str:
    kind = thing.type if isinstance(thing, Exchange) else thing.arguments.get("x-queue-type", "classic")
    return f"`{thing.name}`: {'durable' if thing.durable else 'transient'} {kind}"


def _shown(value: str | bytes | bool | int | Mapping[str, str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        value = "\n".join(f"{key}={each}" for key, each in value.items())
    text = value.decode() if isinstance(value, bytes) else value
    return ", ".join(f"`{line}`" for line in text.splitlines())


def manual() -> str:
    """Return the man page mqtool(1), in roff with man's macros."""
    lines = [
        f'.TH MQTOOL 1 "" "mqtool {__version__}" "User Commands"',
        ".SH NAME",
        f"mqtool \\- {_roff(described().sentence.lower().replace('rabbitmq', 'RabbitMQ'))}",
        ".SH SYNOPSIS",
        ".B mqtool",
        "COMMAND [options] [ARGUMENTS]",
        ".SH COMMANDS",
    ]
    for command in leaves(described()):
        lines += [".SS " + _roff(command.usage), _roff(f"{command.sentence}.")]
        for paragraph in command.details:
            lines += [".PP", _roff(paragraph)]
        lines += [".PP", ".nf", *(_roff(f"    {example}") for example in command.examples), ".fi"]
        lines += _terms([option for option in command.options if not option.topic])
        shared = dict.fromkeys(option.topic for option in command.options if option.topic in TOPICS)
        lines += [".PP", _roff(f"Shared options: {', '.join(shared)}.")] if shared else []
    for topic in TOPICS:
        title, text = topic_text(topic)
        lines.append(f'.SH "{_roff(title.upper())}"')
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("  "):
                for row in paragraph.splitlines():
                    name, _, meaning = row.strip().partition("  ")
                    lines += [".TP", _roff(name), _roff(meaning.strip() or " ")]
            else:
                lines += [".PP", _roff(" ".join(paragraph.split()))]
        lines += _terms(topic_options(described(), topic))
    return "\n".join(lines) + "\n"


def _terms(options: list[OptionHelp]) -> Iterator[str]:
    for option in options:
        yield from (".TP", f"\\fB{_roff(option.syntax)}\\fR", _roff(f"{option.text}".rstrip()))


def _roff(text: str) -> str:
    """Escape text so that roff prints it unchanged."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


#: The modules whose `__all__` is the public interface.
PUBLIC = ("mqtool.testing", "mqtool.broker.embedded")
_SECTIONS = {"Args:": "Arguments:", "Attributes:": "Attributes:", "Returns:": "Returns:", "Raises:": "Raises:"}
_ABOUT_PYTHON = """\
# Python interface

Programs may import the names on this page from mqtool, and use the attributes and methods described here. From version
1.0 on, these names, attributes and methods will not change their meaning until the next major version. Before a name
is removed, its use causes a `DeprecationWarning` in at least one minor version. CHANGELOG.md lists every change to this
interface. Everything else in mqtool is private and may change in any release.

The pytest fixtures `amqp_broker` (an `EmbeddedBroker`), `amqp_vhost` (a `Vhost`) and `amqp_tls` (an `Authority`), the
marker `amqp_recording`, the setting `amqp_broker_like` and the option `--amqp-like` are public, too; see
[testing](../how-to/testing.md)."""
#: Classes that programs create themselves.
_CREATED = {"EmbeddedBroker", "Settings", "Tls"}
#: Methods of public classes that mqtool itself uses.
_PRIVATE = {"arguments", "begin", "now", "under_test", "wait_for_count"}


def interface() -> dict[str, list[str]]:
    """Return the public names, each with its own signature and the signatures of its methods and properties."""
    found = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            found[f"{module.__name__}.{name}"] = [_signature(name, thing), *(line for line, _ in _members(thing))]
    return found


def checksum() -> str:
    """Return a short hash of interface(). CHANGELOG.md must contain it, so that no change goes unnoticed."""
    return hashlib.sha256(repr(interface()).encode()).hexdigest()[:8]


def python() -> str:
    """Return the page about the names that Python programs may import, in Markdown."""
    parts, seen = [_ABOUT_PYTHON, f"Checksum of this interface: `{checksum()}`."], set()
    for module in map(importlib.import_module, PUBLIC):
        parts += [f"## {module.__name__}", *_prose(module)]
        for name in module.__all__:
            thing = getattr(module, name)
            if thing in seen:
                parts.append(f"`{name}`: as in `{PUBLIC[0]}`.")
                continue
            seen.add(thing)
            parts += [f"### {name}", f"```python\n{_signature(name, thing)}\n```", *_prose(thing)]
            for line, member in _members(thing):
                parts += [f"```python\n{line}\n```", *_prose(member)]
    return "\n\n".join(parts) + "\n"


def _members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the signature of each public method and property of a class, with the object that has its docstring."""
    if not inspect.isclass(thing):
        return
    for name in dict.fromkeys(
        name for owner in thing.__mro__ if owner.__module__.startswith("mqtool.") for name in vars(owner)
    ):
        member = inspect.getattr_static(thing, name)
        if name.startswith("_") or name in _PRIVATE:
            continue
        if isinstance(member, property):
            returned = _plain(str(inspect.signature(member.fget))).partition(" -> ")[2]
            yield f"{thing.__name__}.{name}: {returned}", member
        elif inspect.isroutine(member):
            prefix = "async " if inspect.iscoroutinefunction(member) else ""
            yield f"{prefix}{thing.__name__}.{_signature(name, member)}", member


def _signature(name: str, thing: Any) -> str:
    if inspect.isclass(thing) and name not in _CREATED:
        bases = ", ".join(base.__name__ for base in thing.__bases__ if issubclass(thing, list | Exception))
        return f"class {name}({bases})" if bases else f"class {name}"
    return name + _plain(str(inspect.signature(thing))).replace("(self, ", "(").replace("(self)", "()").removesuffix(
        " -> None"
    )


def _plain(signature: str) -> str:
    """Remove the module names and the quotes of types from a signature."""
    signature = re.sub(r"(: |-> |\[str, )'([^']+)'", r"\1\2", signature)
    signature = re.sub(r"<function \S+ at \w+>", "...", signature)
    return re.sub(r"~(?=[A-Z])|\b(?:[a-z_0-9]+\.)+(?=[A-Z])", "", signature)


def _prose(thing: Any) -> Iterator[str]:
    """Yield the paragraphs of an object's docstring, in Markdown."""
    for block in (inspect.getdoc(thing) or "").split("\n\n"):
        head, _, rest = block.partition("\n")
        if head in _SECTIONS:
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            terms = (" ".join(item.split()).partition(": ") for item in items)
            yield _SECTIONS[head]
            yield "\n".join(f"- `{name}`: {text}" if text else f"- {name}" for name, _, text in terms)
        elif block.startswith("    "):
            yield f"```python\n{textwrap.dedent(block)}\n```"
        elif block:
            yield block


def write_whole(path: Path, text: str) -> None:
    """Write a file as a whole: a command that imports INDEX meanwhile reads the old file or the new one."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    COMMAND_PAGES.mkdir(exist_ok=True)
    pages = reference() | {
        INDEX: index(),
        TUTORIAL_ROWS: tutorials(),
        DIALECTS: dialects(),
        NOTATION: notation(),
        OLDER_TUTORIALS: tutorial_comparisons.page(OLDER_TUTORIALS.read_text()),
        PYTHON: python(),
        MANUAL: manual(),
    }
    for path, page in pages.items():
        write_whole(path, page)
