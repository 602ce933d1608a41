"""Commands, groups of options, and parsers for values on the command line.

A command is a function. Each of its parameters is annotated with an Option or an Argument, or is an OptionGroup, whose
class attribute PANEL names the section of the help that shows the group's options.
"""

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from inspect import Parameter
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union, dataclass_transform, get_args, get_origin

import click
from click import Context

from mqtool.cli.contexts import Effect, effect_of
from mqtool.cli.usage import HelpedArgument, HelpedOption, help_options, naming_command, show_help
from mqtool.duration import parse_duration
from mqtool.errors import UsageError


class Call(NamedTuple):
    """How a command was called. mqtool sets a field of this type in an OptionGroup.

    Attributes:
        command: the command's name, such as "queue purge".
        typed: names of the parameters given on the command line, not by a default or the environment.
        must_ask: True if the command changes the broker and does not ask for confirmation itself.
        options: names of all parameters that the command accepts.
    """

    command: str = ""
    typed: frozenset[str] = frozenset()
    must_ask: bool = False
    options: Collection[str] = ()


#: The Call for options that do not come from a command line, for example in tests.
NOT_CALLED = Call()

#: Returns the completions for a value, given the command line so far and the start of the value.
_Completion = Callable[[Context, str], Iterable[str]]


class Option:
    """An option, in an annotation such as Annotated[int, Option("-c", min=1, help="Stop after N messages")].

    Args:
        flags: by default, named after the parameter or field. A switch that is off by default has no --no- form.
        settings: help, metavar, envvar and show_default, as in click; and
            parser: a function that turns the text into the value, or raises ValueError;
            min, max: limits of a number;
            complete: a _Completion; by default, names on the broker for a queue, exchange or virtual host;
            panel: the section of the help; by default, that of the group;
            resolve_path: True to make a path absolute.
    """

    def __init__(self, *flags: str, **settings: Any) -> None:
        self.flags, self.settings = flags, settings


class Argument(Option):
    """A positional argument, for use in an annotation."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class OptionGroup:
    """A group of options. Its fields are options or other groups.

    Works like a frozen dataclass. Real dataclasses for all groups would make `mqtool send` 10 % slower.
    """

    PANEL: ClassVar[str | None] = None

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def changed(self, **values: Any) -> Self:
        """Return a copy with new values for the given fields. Cached values are not copied."""
        return type(self)(**{name: value for name, value in vars(self).items() if name[0] != "_"} | values)


#: Placeholders of values in the help, and the kind of object on the broker whose names complete such a value.
_ON_BROKER = {"QUEUE": "queues", "STREAM": "queues", "EXCHANGE": "exchanges", "VHOST": "vhosts"}
_ON_BROKER |= {"USER": "users", "POLICY": "policies"}


def _names(kind: str, ctx: Context, incomplete: str) -> Iterable[str]:
    from mqtool.cli import completion  # imported only for completion, because that is slow

    return completion.on_broker(*given(ctx), kind, incomplete)


class _Parsed(click.ParamType[Any]):
    """The click type of an option whose value a function parses. A ValueError of the function becomes a usage error."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error


class _Member(click.Choice[str]):
    """The click type of an option whose values are the members of an Enum."""

    def __init__(self, enum: type[Enum]) -> None:
        super().__init__([str(each.value) for each in enum])
        self._enum = enum

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if isinstance(value, self._enum) else self._enum(super().convert(value, param, ctx))


#: Shared by all options, because click searches the disk for a translation of "path" whenever it creates such a type.
_PATH = click.Path(path_type=Path)


def _click_type(kind: Any, settings: dict[str, Any]) -> Any:
    """Return an option's click type. Removes the settings that become part of the type, such as `min`."""
    parser, limits = settings.pop("parser", None), (settings.pop("min", None), settings.pop("max", None))
    if parser is not None:
        return _Parsed(parser)
    if limits != (None, None):
        return click.IntRange(*limits) if kind is int else click.FloatRange(*limits)
    if kind is Path:
        return click.Path(path_type=Path, resolve_path=True) if settings.pop("resolve_path", False) else _PATH
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return _Member(kind) if issubclass(kind, Enum) else kind


def _leaf(name: str, annotation: Any, default: Any, panel: str | None) -> click.Parameter:
    """Build the click parameter for an annotation such as Annotated[int, Option(...)]."""
    kind, info = get_args(annotation)
    is_optional = get_origin(kind) in (Union, UnionType)
    if is_optional:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    is_list = get_origin(kind) is list
    if is_list:
        (kind,) = get_args(kind)
    settings = {"panel": panel, **info.settings}
    settings["type"] = _click_type(kind, settings)
    if default is Parameter.empty or (default is None and not is_optional):
        settings["required"] = True
    else:
        settings["default"] = default
    on_broker = _ON_BROKER.get((settings.get("metavar") or name.upper().rpartition("_")[2]).strip("[]."))
    if complete := settings.pop("complete", on_broker and functools.partial(_names, on_broker)):
        settings["shell_complete"] = lambda ctx, _parameter, typed: [
            each for each in complete(ctx, typed) if each.startswith(typed)
        ]
    if isinstance(info, Argument):
        return HelpedArgument([name], nargs=-1 if is_list else 1, **settings)
    flags = [*info.flags]
    if not any(flag.startswith("--") for flag in flags):
        long = name.replace("_", "-")
        flags.insert(0, f"--{long}/--no-{long}" if default is True else f"--{long}")
    if kind is bool:
        settings["is_flag"] = True
    return HelpedOption([name, *flags], multiple=is_list, show_envvar=True, **settings)


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, OptionGroup)


def _leaves(
    group: type[OptionGroup], without: Collection[str], instead: Mapping[str, Any]
) -> Iterator[click.Parameter]:
    """Yield the click parameters of a group and its nested groups; see Command for `without` and `instead`."""
    for name, kind in group.__annotations__.items():
        annotation = instead.get(name, kind)
        if _is_group(annotation):
            yield from _leaves(annotation, without, instead)
        elif name not in without and get_origin(annotation) is Annotated:
            panel = None if name in instead else group.PANEL
            yield _leaf(name, annotation, getattr(group, name, Parameter.empty), panel)


def _made(group: type[OptionGroup], values: Mapping[str, Any], call: Call) -> OptionGroup:
    """Create an option group from values. Options that the command does not take keep their defaults."""
    made: dict[str, Any] = {}
    for name, kind in group.__annotations__.items():
        if kind is Call:
            made[name] = call
        elif _is_group(kind):
            made[name] = _made(kind, values, call)
        elif name in values:
            made[name] = values[name]
    return group(**made)


class Command(click.Command):
    """A command. Calls a function with the options and option groups that the function takes.

    Args:
        examples: command lines that run exactly as written.
        without: names of options to leave out of the command's groups.
        instead: annotations that replace those in the groups, for example to turn an option into an argument.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., None],
        about: str,
        examples: Collection[str],
        without: Collection[str],
        instead: Mapping[str, Any],
    ) -> None:
        self._function = function
        self._parameters = inspect.signature(function).parameters
        parameters: list[click.Parameter] = []
        for each in self._parameters.values():
            annotation = instead.get(each.name, each.annotation)
            if _is_group(annotation):
                parameters += _leaves(annotation, without, instead)
            elif each.name not in without and get_origin(annotation) is Annotated:
                parameters.append(_leaf(each.name, annotation, each.default, None))
        super().__init__(
            name, params=[*parameters, *help_options()], help=about, epilog="\n".join(examples), add_help_option=False
        )
        self.panel = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        with naming_command(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> None:
        """Call the command's function.

        Raises:
            UsageError: -C is given, but the command uses a broker that mqtool starts.
        """
        command = " ".join(ctx.command_path.split()[1:])
        if (effect := effect_of(command)) is Effect.OWN and ctx.find_root().params.get("context") is not None:
            raise UsageError(f"'{command}' does not take a context", "omit -C: it uses a broker that mqtool starts")
        values, typed = given(ctx)
        call = Call(command, typed, effect is Effect.CHANGES and "yes" not in values, values.keys())
        arguments: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            if parameter.annotation is Context:
                arguments[name] = ctx
            elif _is_group(parameter.annotation):
                arguments[name] = _made(parameter.annotation, values, call)
            elif name in values:
                arguments[name] = values[name]
        self._function(**arguments)


def given(ctx: Context) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the values of a command's parameters, and the names of those given on the command line.

    -C before the command (mqtool -C prod list queues) has the same effect as -C after it.
    """
    values = {name: [*value] or None if type(value) is tuple else value for name, value in ctx.params.items()}
    typed = {name for name in values if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    first = ctx.find_root().params.get("context")
    if first is not None and "context" in values and "context" not in typed:
        values["context"] = first
        typed.add("context")
    return values, frozenset(typed)


class Commands:
    """The commands of a module or of a group such as `queue`. A command is built when it is first used."""

    def __init__(self) -> None:
        self.makers: dict[str, Callable[[], click.Command]] = {}

    def group(self, name: str, about: str) -> "Commands":
        """Add a group of commands, such as `queue`. Returns the group, so that commands can be added to it."""
        below = Commands()
        self.makers[name] = functools.cache(lambda: Group(name, about, below))
        return below

    def command(
        self,
        *examples: str,
        name: str | None = None,
        about: str | None = None,
        without: Collection[str] = (),
        also: Collection[str] = (),
        instead: Mapping[str, Any] = MappingProxyType({}),
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return a decorator that makes a function a command.

        Args:
            examples, without, instead: see Command.
            also: names of options that only a few commands have; currently only protocol.
            name, about: the command's name and help; by default the function's name and docstring.
        """

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            called = name or function.__name__.replace("_", "-")
            text = about or inspect.getdoc(function) or ""
            left_out = {*without, *{"protocol"}.difference(also)}
            self.makers[called] = functools.cache(lambda: Command(called, function, text, examples, left_out, instead))
            return function

        return decorate


class Group(click.Group):
    """A group of commands, such as `queue`. Without a subcommand, it shows its help."""

    def __init__(self, name: str, about: str, commands: Commands, **settings: Any) -> None:
        super().__init__(
            name=name,
            help=about,
            params=[*settings.pop("params", ()), *help_options()],
            add_help_option=False,
            **settings,
        )
        self.panel = ""
        self._makers = commands.makers

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the subcommand. Without any arguments, show the help."""
        if not args and not ctx.resilient_parsing:
            show_help(ctx)
        with naming_command(ctx):
            return super().parse_args(ctx, args)

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the names of the subcommands."""
        return [*self._makers]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return the subcommand with this name, or None."""
        make = self._makers.get(cmd_name)
        return None if make is None else make()


def time_limit(text: str) -> float:
    """Parse a duration greater than 0 into seconds."""
    if seconds := duration_or_seconds(text):
        return seconds
    raise ValueError(f"{text!r} is not greater than 0")


def duration_or_seconds(text: str) -> float:
    """Parse a duration or a number of seconds. Not for delays and TTLs, which RabbitMQ counts in milliseconds."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else parse_duration(text)


def size(text: str) -> int:
    """Parse a size such as 64KiB or 128MiB into bytes."""
    parts = re.fullmatch(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", text, re.IGNORECASE)
    if parts is None or not int(parts[1]):
        raise ValueError(f"{text!r} is not a size such as 64KiB or 128MiB")
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[(parts[2] or "").upper()]


def header(text: str) -> tuple[str, Any]:
    """Parse a header, written as key=text or key:=json, into its name and value."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise ValueError(f"{text!r} is not a header: write key=text, or key:=json for a typed value")
    if not key.endswith(":"):
        return key, value
    import json

    try:
        return key[:-1], json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """Parse an AMQP argument. It is written like a header, but text that is a whole number becomes an integer."""
    key, value = header(text)
    return key, int(value) if isinstance(value, str) and value.isdecimal() else value


def header_option(about: str) -> Any:
    """Build the option --header for a parameter that is a list."""
    return Option("--header", "-H", parser=header, metavar="KEY=VALUE", help=about)


def argument_option(about: str) -> Any:
    """Build the option --argument for a parameter that is a list."""
    return Option("--argument", "-a", parser=argument, metavar="KEY=VALUE", help=about)


#: Settings of an option that takes a duration; TIME_LIMIT does not allow 0.
DURATION = dict[str, Any](parser=duration_or_seconds, metavar="DURATION")
TIME_LIMIT = dict[str, Any](parser=time_limit, metavar="DURATION")
