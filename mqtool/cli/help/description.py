"""The commands as data: for --help, the man page, and the command reference.

>>> command = describe(mqtool, ("queue", "declare"))
>>> command.sentence, command.examples[0]
('Declare a queue', 'mqtool queue declare jobs')
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mqtool.duration import compact_duration
from mqtool.topology import Exchange, Queue
from mqtool.tutorials.dialects import NAMES, Dialect

#: For each section of options: the help topic that explains it, and its options that a command's --help shows. The
#: others are shown by --help-all and `mqtool help TOPIC`.
PANELS = {
    "Topology": ("declaring", {"--queue", "--exchange", "--routing-key", "--durable", "--queue-type", "--dialect"}),
    "Messages": ("messages", {"--file", "--lines", "--json", "--header", "--key-pattern"}),
    "Delay": ("delays", {"--delay"}),
    "Receiving": ("receiving", {"--count", "--idle-timeout", "--prefetch", "--offset", "--track"}),
    "Programs": ("programs", {"--exec", "--concurrency"}),
    "Retries": ("retries", {"--retries"}),
    "Duplicates": ("duplicates", {"--deduplicate"}),
    "Printing": ("output", {"--raw", "--json", "--format", "--output"}),
    "Load": (
        "benchmarks",
        {
            "--rate",
            "--duration",
            "--messages",
            "--size",
            "--publishers",
            "--consumers",
            "--queue-type",
            "--at",
            "--vary",
        },
    ),
    "Broker": ("connection", {"--url", "--context"}),
    "Help": ("help", {"--help", "--help-all"}),
}
#: Flags that are accepted for users of other tools, but not shown in the help.
_UNLISTED = {"-n"}
_PUBLISHING = {"send", "new-task", "emit-log", "rpc-client", "send-delayed", "send-stream", "offset send"}
_DECLARING = {"receive", "worker", "receive-log", "rpc-server", "receive-delayed", "receive-stream", "offset receive"}
#: Options that every command accepts, and the commands whose help shows them. On other commands, they have no effect.
_SHOWN_BY = {
    "--dialect": {*_PUBLISHING, *_DECLARING, "queue declare"},
    "--strict": {*_PUBLISHING, *_DECLARING, "publisher-confirms"},
    "--verbose": {*_PUBLISHING, "recording replay", "move", "dlq redrive"},
}
#: The order of the sections in the help. The command's own options come first.
_ORDER = ("", *(topic for topic, _ in PANELS.values()))
#: The default queue or exchange of tutorial commands: a field of `Names` in tutorials/dialects.py.
_TUTORIAL_NAMES = {
    ("send", "--queue"): "hello",
    ("receive", "--queue"): "hello",
    ("new-task", "--queue"): "task_queue",
    ("worker", "--queue"): "task_queue",
    ("rpc-server", "--queue"): "rpc_queue",
    ("rpc-client", "--queue"): "rpc_queue",
    ("fanout", "--exchange"): "fanout",
    ("direct", "--exchange"): "direct",
    ("topic", "--exchange"): "topic",
    ("headers", "--exchange"): "headers",
    ("send-delayed", "--exchange"): "delay_exchange",
    ("receive-delayed", "--exchange"): "delay_exchange",
    ("receive-delayed", "--queue"): "delay_queue",
}


@dataclass(frozen=True)
class OptionHelp:
    """An option of a command.

    Attributes:
        flags: such as ("-q", "--queue"); flags that switch the option off, such as "--no-reconnect", come last.
        value: the name of the option's value in the help; "" for a switch.
        text: the description of the option, without its default.
        default: the default value as text; "" if none is shown.
        variables: environment variables that set the option.
        repeatable: True if the option may be given several times.
        topic: the help topic of the option's section; "" for the command's own options.
        is_common: True if --help shows the option; False if only --help-all does.
    """

    flags: tuple[str, ...]
    value: str
    text: str
    default: str
    variables: tuple[str, ...]
    repeatable: bool
    topic: str
    is_common: bool

    @property
    def notes(self) -> str:
        """The text in parentheses after an option: default, environment variables, repeatable."""
        notes = [f"default: {self.default}"] if self.default else []
        notes += [f"env: {', '.join(self.variables)}"] if self.variables else []
        notes += ["repeatable"] if self.repeatable else []
        return f"({'; '.join(notes)})" if notes else ""

    @property
    def syntax(self) -> str:
        """The flags and the value, such as "-q, --queue QUEUE"."""
        return f"{', '.join(self.flags)} {self.value}".rstrip()


@dataclass(frozen=True)
class ArgumentHelp:
    """A positional argument: its name in the usage line, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class CommandHelp:
    """A command, or a group of commands.

    Attributes:
        words: such as ("queue", "declare").
        panel: the heading above a top-level command in `mqtool --help`.
        sentence: one sentence about the command, without a full stop.
        details: more paragraphs, if any.
        examples: command lines that run exactly as written.
        commands: the subcommands of a group.
    """

    words: tuple[str, ...]
    panel: str
    sentence: str
    details: tuple[str, ...]
    examples: tuple[str, ...]
    arguments: tuple[ArgumentHelp, ...]
    options: tuple[OptionHelp, ...]
    commands: tuple["CommandHelp", ...]

    @property
    def path(self) -> str:
        """The whole command, such as "mqtool queue declare"."""
        return " ".join(("mqtool", *self.words))

    @property
    def usage(self) -> str:
        """The usage line without the word "usage"."""
        if self.commands:
            return f"{self.path} COMMAND"
        options = ["[options]"] if self.options else []
        return " ".join((self.path, *options, *(argument.name for argument in self.arguments)))


def describe(command: Any, words: tuple[str, ...] = ()) -> CommandHelp:
    """Describe a command, or a group with all its subcommands.

    Args:
        words: the words of the command after "mqtool".
    """
    text = inspect.cleandoc(command.help or "").split("\n\n")
    below = command.list_commands(None) if hasattr(command, "list_commands") else ()
    return CommandHelp(
        words,
        command.panel,
        " ".join(text[0].split()).removesuffix("."),
        tuple(" ".join(paragraph.split()) for paragraph in text[1:]),
        tuple(line.strip() for line in (command.epilog or "").splitlines()),
        tuple(_argument(parameter) for parameter in command.params if parameter.param_type_name == "argument"),
        tuple(sorted(_options(command.params, words), key=lambda option: _ORDER.index(option.topic))),
        tuple(describe(command.get_command(None, name), (*words, name)) for name in below),
    )


def leaves(command: CommandHelp) -> Iterator[CommandHelp]:
    """Yield all commands below a group, without the groups themselves."""
    if not command.commands:
        yield command
    for below in command.commands:
        yield from leaves(below)


def topic_options(command: CommandHelp, topic: str) -> list[OptionHelp]:
    """Return the options that belong to a help topic, from a command and all its subcommands, without duplicates."""
    found: dict[str, OptionHelp] = {}
    for leaf in leaves(command):
        for option in leaf.options:
            if option.topic == topic:
                found.setdefault(option.flags[-1], option)
    return list(found.values())


def _argument(parameter: Any) -> ArgumentHelp:
    metavar = parameter.metavar or parameter.name
    name = metavar.upper().rstrip(".").strip("[]").rstrip(".")
    if " " in metavar:
        name = metavar.strip("[]")  # several words, such as "[compare A B]"
    elif parameter.nargs != 1:
        singular = f"{name[:-3]}Y" if name.endswith("IES") else name.removesuffix("S")
        name = f"{singular}..."
    default = parameter.show_default
    text = f"{parameter.text}{f' (default: {default})' if default else ''}".strip()
    return ArgumentHelp(name if parameter.required else f"[{name}]", text)


def _options(parameters: Any, words: tuple[str, ...]) -> Iterator[OptionHelp]:
    for parameter in parameters:
        if parameter.param_type_name != "option" or parameter.hidden:
            continue
        shown_by = next((_SHOWN_BY[flag] for flag in parameter.opts if flag in _SHOWN_BY), None)
        if shown_by is not None and shown_by.isdisjoint({words[0], " ".join(words)} if words else ()):
            continue
        topic, common = PANELS.get(parameter.panel, ("", None))
        flags = (
            *sorted((flag for flag in parameter.opts if flag not in _UNLISTED), key=len),
            *parameter.secondary_opts,
        )
        yield OptionHelp(
            flags,
            "" if parameter.is_flag else _value_name(parameter),
            parameter.help or "",
            _default(parameter, words),
            tuple([parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()),
            parameter.multiple,
            topic,
            common is None or not common.isdisjoint(flags),
        )


def _value_name(parameter: Any) -> str:
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return "|".join(map(str, choices))
    if parameter.metavar:
        return str(parameter.metavar)
    kind = str(parameter.type.name)
    if kind.startswith(("int", "float")):
        return "N"
    return "FILE" if kind == "path" else str(max(parameter.opts, key=len)).rpartition("-")[2].upper()


def _default(parameter: Any, words: tuple[str, ...]) -> str:
    long = max(parameter.opts, key=len)
    field = None if words[:1] == ("offset",) else _TUTORIAL_NAMES.get((words[-1] if words else "", long))
    if field is not None:
        return declared(getattr(NAMES[Dialect.PYTHON], field))
    if isinstance(parameter.show_default, str):
        return str(parameter.show_default)
    default = parameter.default
    if parameter.required or default is None or callable(default) or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return "on" if default and parameter.secondary_opts else ""
    return compact_duration(default) if parameter.metavar == "DURATION" else str(default)


def declared(thing: Exchange | Queue) -> str:
    """Describe a tutorial's queue or exchange: "hello, a durable quorum queue"."""
    kind = thing.type if isinstance(thing, Exchange) else thing.arguments.get("x-queue-type", "classic")
    what = "exchange" if isinstance(thing, Exchange) else "queue"
    return f"{thing.name}, a {'durable' if thing.durable else 'transient'} {kind} {what}"
