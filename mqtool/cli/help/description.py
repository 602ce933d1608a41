"""The commands as data, for the man page, the command reference and the help topics.

>>> [declare] = [each for each in leaves(describe(tree)) if each.words == ("queue", "declare")]
>>> declare.sentence, declare.examples[0]
('Declare a queue; by default a durable quorum queue', 'mqtool queue declare jobs')
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import typer

from mqtool.cli.contexts import Effect
from mqtool.cli.help.option_sections import SECTIONS, help_record
from mqtool.cli.help.sentence import sentence_of


@dataclass(frozen=True)
class OptionHelp:
    """An option of a command, or an argument.

    Attributes:
        flags: such as ("-q", "--queue"); flags that switch the option off, such as "--no-reconnect", come last.
        syntax: the flags and the value, such as "-q, --queue QUEUE"; of an argument, its name.
        text: the description, with the default and the environment variables.
        topic: the help topic of the option's section; "" for the command's own options.
        is_common: True if --help shows the option; False if only --help-all does.
        takes_value: False for a switch.
    """

    flags: tuple[str, ...]
    syntax: str
    text: str
    topic: str
    is_common: bool
    takes_value: bool


@dataclass(frozen=True)
class CommandHelp:
    """A command, or a group of commands.

    Attributes:
        words: such as ("queue", "declare").
        heading: the heading above a top-level command in `mqtool --help`.
        sentence: one sentence about the command, without a full stop.
        details: more paragraphs, if any.
        usage: the usage line, without the word "Usage".
        examples: command lines that run exactly as written.
        effect: what the command does to the broker; None for a group.
        aliases: what other tools call the command.
        commands: the subcommands of a group.
    """

    words: tuple[str, ...]
    heading: str
    sentence: str
    details: tuple[str, ...]
    usage: str
    examples: tuple[str, ...]
    arguments: tuple[OptionHelp, ...]
    options: tuple[OptionHelp, ...]
    effect: Effect | None
    aliases: tuple[str, ...]
    commands: tuple["CommandHelp", ...]

    @property
    def path(self) -> str:
        """The whole command, such as "mqtool queue declare"."""
        return " ".join(("mqtool", *self.words))


def describe(tree: typer.Typer) -> CommandHelp:
    """Describe a tree of commands; see whole_tree()."""
    return _described(typer.main.get_command(tree), ())


def _described(command: Any, words: tuple[str, ...]) -> CommandHelp:
    context = typer.Context(command, info_name=" ".join(("mqtool", *words)))
    text = inspect.cleandoc(command.help or "").split("\n\n")
    parameters = [_option(each, context) for each in command.params if not each.hidden]
    return CommandHelp(
        words,
        getattr(command.callback, "heading", None) or "",
        sentence_of(text[0]),
        tuple(" ".join(paragraph.split()) for paragraph in text[1:]),
        " ".join(command.get_usage(context).split()).removeprefix("Usage: "),
        getattr(command.callback, "examples", ()),
        tuple(each for each in parameters if not each.flags),
        tuple(sorted((each for each in parameters if each.flags), key=lambda option: _ORDER.index(option.topic))),
        getattr(command.callback, "effect", None),
        getattr(command.callback, "aliases", ()),
        tuple(_described(each, (*words, name)) for name, each in getattr(command, "commands", {}).items()),
    )


#: The order of the sections. The command's own options come first.
_ORDER = ("", *(each.topic for each in SECTIONS.values()))


def _option(parameter: Any, context: typer.Context) -> OptionHelp:
    syntax, text = help_record(parameter, context)
    section = SECTIONS.get(parameter.rich_help_panel)
    is_option = parameter.param_type_name == "option"
    return OptionHelp(
        (*sorted(parameter.opts, key=len), *parameter.secondary_opts) if is_option else (),
        syntax,
        " ".join(text.split()),
        section.topic if section else "",
        section is None or section.shows(parameter.opts),
        is_option and not parameter.is_flag,
    )


def leaves(command: CommandHelp) -> Iterator[CommandHelp]:
    """Yield all commands below a group, without the groups themselves."""
    if not command.commands:
        yield command
    for below in command.commands:
        yield from leaves(below)


def topic_options(command: CommandHelp, topic: str) -> list[OptionHelp]:
    """Return the options that belong to a help topic, from a command and all its subcommands, without duplicates.

    A default is left out if it is not the same for all of the commands that have the option.
    """
    found: dict[str, list[OptionHelp]] = {}
    for leaf in leaves(command):
        for option in leaf.options:
            if option.topic == topic:
                found.setdefault(option.flags[-1], []).append(option)
    return [_of_all(options) for options in found.values()]


def _of_all(options: list[OptionHelp]) -> OptionHelp:
    first, *others = options
    text, default, _ = first.text.partition(" [default: ")
    is_shared = all(each.text.endswith(first.text[len(text) :]) for each in others)
    return first if is_shared or not default else replace(first, text=text)
