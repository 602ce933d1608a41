"""Commands, groups of options, and parsers for values on the command line.

A command is a function. Each of its parameters is an option or argument, annotated as for typer, or a group of options:
a frozen dataclass whose fields are options or further groups. The class attribute PANEL names the section of the help
that shows the group's options.
"""

import copy
import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import MappingProxyType, NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin

from typer import BadParameter, Context, Option
from typer.core import TyperCommand, TyperGroup
from typer.main import get_click_param
from typer.models import ArgumentInfo, OptionInfo, ParamMeta

from mqtool.cli.contexts import Effect, effect_of
from mqtool.cli.usage import help_options, show_help
from mqtool.duration import parse_duration
from mqtool.errors import UsageError

_Group = TypeVar("_Group")


@dataclass_transform(frozen_default=True)
def option_group(group: type[_Group]) -> type[_Group]:
    """Make a class a group of options: a frozen dataclass.

    It has no methods for comparison and printing, which would make `mqtool send` start 10% more slowly.
    """
    return dataclass(frozen=True, eq=False, repr=False, match_args=False)(group)


@dataclass(frozen=True)
class Call:
    """How a command was called. mqtool fills in each field of this type in a group of options.

    Attributes:
        command: such as "queue purge".
        typed: names of the parameters given on the command line, not by a default or the environment.
        must_ask: True if the command changes the broker and does not ask for confirmation itself.
    """

    command: str = ""
    typed: frozenset[str] = frozenset()
    must_ask: bool = False


#: The Call of options that do not come from a command line, for example in tests.
NOT_CALLED = Call()


_Completion = Callable[[Context, str], list[str]]


def _names_of(kind: str) -> _Completion:
    def complete(ctx: Context, incomplete: str) -> list[str]:
        from mqtool.cli import completion  # only for completion, because it takes long to import

        return completion.on_broker(*given(ctx), kind, incomplete)

    return complete


#: Functions that complete an option's value, by the name of the value in the help.
_COMPLETED = {
    "QUEUE": _names_of("queues"),
    "STREAM": _names_of("queues"),
    "EXCHANGE": _names_of("exchanges"),
    "VHOST": _names_of("vhosts"),
}


class _Leaf(NamedTuple):
    """An option or argument: typer's parameter, and a function that converts its value to the annotated type."""

    parameter: Any
    convert: Callable[[Any], Any] | None


def _leaf(name: str, annotation: Any, default: Any, panel: str | None) -> _Leaf:
    """Make typer's parameter for an annotation such as Annotated[int, Option(...)].

    An option is named after its field. A switch that is off by default has no --no- form.
    """
    kind, info = get_args(annotation)
    info = copy.copy(info)
    if isinstance(info, OptionInfo):
        # In an annotation, Option() keeps the first flag as its default.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
        if (flags or default is False) and not any(flag.startswith("--") for flag in flags):
            flags.insert(0, f"--{name.replace('_', '-')}")
        info.param_decls = flags
    is_required = default is MISSING or (isinstance(info, ArgumentInfo) and default is inspect.Parameter.empty)
    info.default = ... if is_required else default
    info.rich_help_panel = info.rich_help_panel or panel
    if info.parser is not None:
        info.parser = _telling_errors(info.parser)
    if info.autocompletion is None:
        info.autocompletion = _COMPLETED.get((info.metavar or name.upper().rpartition("_")[2]).strip("[]."))
    return _Leaf(*get_click_param(ParamMeta(name=name, default=info, annotation=kind)))


def _telling_errors(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Wrap a parser so that its ValueError becomes a usage error. Defaults are not parsed."""

    @functools.wraps(parse)
    def parsed(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise BadParameter(str(error)) from error

    return parsed


def _leaves(group: Any, without: Collection[str], instead: Mapping[str, Any]) -> Iterator[_Leaf]:
    """The options of a group, including those of nested groups."""
    for each in fields(group):
        annotation = instead.get(each.name, each.type)
        if is_dataclass(annotation):
            yield from _leaves(annotation, without, instead)
        elif each.name not in without and get_origin(annotation) is Annotated:
            panel = None if each.name in instead else getattr(group, "PANEL", None)
            yield _leaf(each.name, annotation, _default(annotation, each.default), panel)


def _default(annotation: Any, default: Any) -> Any:
    """The default of an option or argument. An argument is required unless its type allows None."""
    kind, info = get_args(annotation)
    return MISSING if isinstance(info, ArgumentInfo) and default is None and NoneType not in get_args(kind) else default


def _made(group: Any, values: Mapping[str, Any], call: Call) -> Any:
    """Fill a group of options. Options that the command does not take keep their defaults."""
    made = {}
    for each in fields(group):
        if each.type is Call:
            made[each.name] = call
        elif is_dataclass(each.type):
            made[each.name] = _made(each.type, values, call)
        elif each.name in values:
            made[each.name] = values[each.name]
    return group(**made)


class Command(TyperCommand):
    """A command: calls a function with the options and groups of options that it takes.

    Args:
        examples: command lines that run exactly as written.
        without: names of options to leave out of the command's groups.
        instead: annotations that replace those in the groups, for example to take a name as an argument.
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
        leaves: list[_Leaf] = []
        for each in self._parameters.values():
            annotation = instead.get(each.name, each.annotation)
            if is_dataclass(annotation) and annotation is not Call:
                leaves += _leaves(annotation, without, instead)
            elif each.name not in without and get_origin(annotation) is Annotated:
                default = MISSING if each.default is each.empty else each.default
                leaves.append(_leaf(each.name, annotation, default, None))
        self._converters = {leaf.parameter.name: leaf.convert for leaf in leaves if leaf.convert is not None}
        parameters = [*(leaf.parameter for leaf in leaves), *help_options()]
        super().__init__(
            name,
            params=parameters,
            help=about,
            epilog="\n".join(examples),
            add_help_option=False,
            rich_markup_mode=None,
        )

    def invoke(self, ctx: Any) -> None:
        """Call the function.

        Raises:
            UsageError: -C is given, but the command uses a broker that mqtool starts.
        """
        command = " ".join(ctx.command_path.split()[1:])
        if (effect := effect_of(command)) is Effect.OWN and ctx.find_root().params.get("context") is not None:
            raise UsageError(f"'{command}' does not take a context", "omit -C: it uses a broker of its own")
        values, typed = given(ctx)
        call = Call(command, typed, must_ask=effect is Effect.CHANGES and "yes" not in values)
        converters = self._converters
        converted = {name: converters[name](value) if name in converters else value for name, value in values.items()}
        arguments: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            if parameter.annotation is Context:
                arguments[name] = ctx
            elif is_dataclass(parameter.annotation):
                arguments[name] = _made(parameter.annotation, converted, call)
            elif name in converted:
                arguments[name] = converted[name]
        self._function(**arguments)


def given(ctx: Context) -> tuple[dict[str, Any], frozenset[str]]:
    """The values of a command's parameters, and the names of those given on the command line.

    -C before the command (mqtool -C prod list queues) counts like -C after it.
    """
    values: dict[str, Any] = dict(ctx.params)
    typed = {name for name in values if _is_typed(ctx, name)}
    first = ctx.find_root().params.get("context")
    if first is not None and "context" in values and "context" not in typed:
        values["context"] = first
        typed.add("context")
    return values, frozenset(typed)


def _is_typed(ctx: Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


class Commands:
    """The commands of a module or of a group such as `queue`. Each is built when it is first used."""

    def __init__(self) -> None:
        self.makers: dict[str, Callable[[], TyperCommand | TyperGroup]] = {}

    def group(self, name: str, about: str) -> "Commands":
        """Add a group of commands."""
        below = Commands()
        self.makers[name] = functools.cache(lambda: Group(name, about, below))
        return below

    def command(
        self,
        *examples: str,
        name: str | None = None,
        about: str | None = None,
        without: Collection[str] = (),
        instead: Mapping[str, Any] = MappingProxyType({}),
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a function a command.

        Args:
            examples, without, instead: see Command.
            name, about: the command's name and help; by default the function's name and docstring.
        """

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            called = name or function.__name__.replace("_", "-")
            text = about or inspect.getdoc(function) or ""
            self.makers[called] = functools.cache(lambda: Command(called, function, text, examples, without, instead))
            return function

        return decorate


class Group(TyperGroup):
    """A group of commands, such as `queue`. Without a subcommand, it shows its help."""

    def __init__(self, name: str, about: str, commands: Commands, **settings: Any) -> None:
        super().__init__(
            name=name,
            help=about,
            params=[*settings.pop("params", ()), *help_options()],
            add_help_option=False,
            suggest_commands=False,
            rich_markup_mode=None,
            **settings,
        )
        self._makers = commands.makers

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the subcommand. Without any arguments, show the help."""
        if not args and not ctx.resilient_parsing:
            show_help(ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, _ctx: Any) -> list[str]:
        """The names of the subcommands."""
        return [*self._makers]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """The subcommand with this name, or None."""
        make = self._makers.get(cmd_name)
        return None if make is None else make()


def time_limit(text: str) -> float:
    """Parse a duration greater than 0 into seconds."""
    seconds = duration_or_seconds(text)
    if not seconds:
        raise ValueError(f"{text!r} must be longer than 0")
    return seconds


def duration_or_seconds(text: str) -> float:
    """Parse a duration, or a number of seconds. Delays and TTLs need a unit: RabbitMQ counts them in milliseconds."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else parse_duration(text)


def rate(text: str) -> float:
    """Parse a rate such as 500, 500/s or 10/m into messages per second."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", text, re.ASCII)
    if parts is None or not float(parts[1]):
        raise ValueError(f"{text!r} is not a rate such as 500/s")
    return float(parts[1]) / {"s": 1, "m": 60, "h": 3600}[parts[2] or "s"]


def size(text: str) -> int:
    """Parse a size such as 64KiB or 128MiB into bytes."""
    parts = re.fullmatch(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", text, re.IGNORECASE)
    if parts is None or not int(parts[1]):
        raise ValueError(f"{text!r} is not a size such as 64KiB or 128MiB")
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[(parts[2] or "").upper()]


def header(text: str) -> tuple[str, Any]:
    """Parse a header: key=text, or key:=json."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise ValueError(f"{text!r} is not a header: write key=text, or key:=json for a typed value")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """Parse an AMQP argument: like a header, but whole numbers become integers."""
    key, value = header(text)
    return key, int(value) if isinstance(value, str) and value.isdecimal() else value


#: --match: whether a message must have all or any of the headers.
Match = Annotated[Literal["all", "any"], Option(help="Match all of the headers, or any of them")]


def header_option(about: str) -> Any:
    """The option --header, repeatable."""
    return Option("--header", "-H", parser=header, metavar="KEY=VALUE", help=about)


def argument_option(about: str) -> Any:
    """The option --argument, repeatable."""
    return Option("--argument", parser=argument, metavar="KEY=VALUE", help=about)


def _offset(text: str) -> Any:
    from mqtool.offsets import parse_offset

    return parse_offset(text)


def _condition(text: str) -> Any:
    from mqtool.where import parse  # only with --where, because it takes a few milliseconds to import

    return parse(text)


#: --where; the value is a mqtool.where.Where.
Where = Annotated[
    Any | None,
    Option("--where", parser=_condition, metavar="CONDITION", help="Only messages that match (mqtool help where)"),
]
#: Settings of an option that takes an offset in a stream.
OFFSET = dict[str, Any](parser=_offset, metavar="OFFSET")
#: Settings of an option that takes a duration; TIME_LIMIT does not allow 0.
DURATION = dict[str, Any](parser=duration_or_seconds, metavar="DURATION")
TIME_LIMIT = dict[str, Any](parser=time_limit, metavar="DURATION")
RATE = dict[str, Any](parser=rate, metavar="RATE")

ConfirmTimeout = Annotated[
    float, Option(rich_help_panel="Messages", help="Give up (exit 75) after this long without confirms", **TIME_LIMIT)
]
#: The default of --confirm-timeout, in seconds.
CONFIRM_TIMEOUT = 20.0
