"""Commands, the groups of options that they take, and how values are written on the command line."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from typer import BadParameter, Context, Option, Typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from mqtool.duration import parse_duration

_Group = TypeVar("_Group")
_Completion = Callable[[Context, str], list[str]]


class Commands(Typer):
    """Commands; their parameters may be groups of options. A group is a NamedTuple, whose fields may be groups, too."""

    def group(self, name: str, about: str) -> "Commands":
        """Commands behind a word of their own, such as `queue`."""
        below = Commands(no_args_is_help=True, help=about)
        self.add_typer(below, name=name)
        return below

    def command(  # type: ignore[override]  # the rest is the same for all of ours
        self, *examples: str, name: str | None = None, about: str | None = None, **changed: Any
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a function a command.

        Args:
            examples: command lines that run as they are.
            name, about: the function's name and docstring, unless given.
            changed: annotations of fields that it takes otherwise, such as a name as an argument; arguments are
                required unless None is among their types. None for a field that it does not take.
        """

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            super(Commands, self).command(name, help=about, epilog="\n".join(examples))(_flat(function, changed))
            return function

        return decorate


def _names_of(kind: str) -> _Completion:
    def complete(ctx: Context, incomplete: str) -> list[str]:
        from mqtool.cli import completion  # only when a shell asks: it takes long to import

        return completion.on_broker(ctx, kind, incomplete)

    return complete


#: What a shell proposes for a value, by what the help calls it.
_COMPLETED = {
    "QUEUE": _names_of("queues"),
    "STREAM": _names_of("queues"),
    "EXCHANGE": _names_of("exchanges"),
    "VHOST": _names_of("vhosts"),
}


def in_panel(name: str) -> Callable[[_Group], _Group]:
    """Say where the help shows the options of a group, except those that name another panel."""

    def decorate(group: _Group) -> _Group:
        for hint in _hints(group).values():
            for about in get_args(hint)[1:]:
                if isinstance(about, OptionInfo) and about.rich_help_panel is None:
                    about.rich_help_panel = name
        return group

    return decorate


def _flat(function: Callable[..., None], changed: dict[str, Any]) -> Callable[..., None]:
    """The function as typer understands it: with the fields of groups as parameters."""
    hints = _hints(function)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters = [
        parameter
        for name, given in inspect.signature(function).parameters.items()
        for parameter in _parameters(name, hints[name], given.default, changed)
    ]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        made = {name: _made(group, values) for name, group in groups.items()}
        function(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@functools.cache
def _hints(thing: Any) -> dict[str, Any]:
    return get_type_hints(thing, include_extras=True)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple)


def _parameters(name: str, hint: Any, default: Any, changed: dict[str, Any]) -> Iterator[inspect.Parameter]:
    if _is_group(hint):
        for field, of_field in _hints(hint).items():
            yield from _parameters(field, of_field, hint._field_defaults.get(field, inspect.Parameter.empty), changed)
        return
    if name in changed and (hint := changed[name]) is not None:
        default = _default(hint, default)
    if hint is not None:
        for about in get_args(hint)[1:]:
            _settle(name, about, default)
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _settle(name: str, about: ParameterInfo, default: Any) -> None:
    """What goes without saying: an option is called as its field is, a switch that is off has no --no-..., and names of
    queues, exchanges and vhosts are completed. What a parser says of a bad value is what the user is told.
    """
    if isinstance(about, OptionInfo):
        flags = [flag for flag in (about.default, *(about.param_decls or ())) if isinstance(flag, str)]
        if (flags or default is False) and not any(flag.startswith("--") for flag in flags):
            about.default, about.param_decls = f"--{name.replace('_', '-')}", flags
    if about.parser is not None and not hasattr(about.parser, "__wrapped__"):
        about.parser = _saying_what_is_wrong(about.parser)
    if about.autocompletion is None:
        about.autocompletion = _COMPLETED.get((about.metavar or name.upper().rpartition("_")[2]).strip("[]."))


def _saying_what_is_wrong(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(parse)
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise BadParameter(str(error)) from error

    return parsed


def _made(group: Any, values: dict[str, Any]) -> Any:
    """A group, of the values that are its fields; they are taken out of all values. The others keep their defaults."""
    hints = _hints(group)
    fields = {
        name: _made(hint, values) if _is_group(hint) else values.pop(name)
        for name, hint in hints.items()
        if _is_group(hint) or name in values
    }
    return group(**fields)


def _default(annotation: Any, otherwise: Any) -> Any:
    kind, *about = get_args(annotation)
    is_argument = any(isinstance(each, ArgumentInfo) for each in about)
    return inspect.Parameter.empty if is_argument and NoneType not in get_args(kind) else otherwise


def time_limit(text: str) -> float:
    """Seconds, from a duration other than 0."""
    seconds = duration_or_seconds(text)
    if not seconds:
        raise ValueError(f"{text!r} must be longer than 0")
    return seconds


def duration_or_seconds(text: str) -> float:
    """Seconds, from a duration or a plain number. Not for delays and TTLs: RabbitMQ counts them in milliseconds."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else parse_duration(text)


def rate(text: str) -> float:
    """Messages per second, from a number, or a number per s, m or h."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", text, re.ASCII)
    if parts is None or not float(parts[1]):
        raise ValueError(f"{text!r} is not a rate such as 500/s")
    return float(parts[1]) / {"s": 1, "m": 60, "h": 3600}[parts[2] or "s"]


def size(text: str) -> int:
    """Bytes, from a number with a unit, such as 64KiB or 128MiB."""
    parts = re.fullmatch(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", text, re.IGNORECASE)
    if parts is None or not int(parts[1]):
        raise ValueError(f"{text!r} is not a size such as 64KiB or 128MiB")
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[(parts[2] or "").upper()]


def header(text: str) -> tuple[str, Any]:
    """A header, from key=text or key:=json."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise ValueError(f"{text!r} is not a header: write key=text, or key:=json for a typed value")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError as error:
        raise ValueError(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """An AMQP argument, written as a header is; a whole number is a number."""
    key, value = header(text)
    return key, int(value) if isinstance(value, str) and value.isdecimal() else value


#: How many of the headers a message must have.
Match = Annotated[Literal["all", "any"], Option(help="Match all of the headers, or any of them")]


def header_option(about: str) -> Any:
    """--header, for headers as a list of names and values."""
    return Option("--header", "-H", parser=header, metavar="KEY=VALUE", help=about)


def argument_option(about: str) -> Any:
    """--argument, likewise."""
    return Option("--argument", parser=argument, metavar="KEY=VALUE", help=about)


def _offset(text: str) -> Any:
    from mqtool.offsets import parse_offset

    return parse_offset(text)


def _condition(text: str) -> Any:
    from mqtool.where import parse  # only where there is one: it takes a few milliseconds to import

    return parse(text)


#: A mqtool.where.Where.
Where = Annotated[
    Any | None,
    Option("--where", parser=_condition, metavar="CONDITION", help="Only messages that match (mqtool help where)"),
]
#: For an option that takes a place in a stream.
OFFSET = dict[str, Any](parser=_offset, metavar="OFFSET")
#: For an option that takes a duration, and for one that takes a duration other than 0.
DURATION = dict[str, Any](parser=duration_or_seconds, metavar="DURATION")
TIME_LIMIT = dict[str, Any](parser=time_limit, metavar="DURATION")
RATE = dict[str, Any](parser=rate, metavar="RATE")

ConfirmTimeout = Annotated[
    float, Option(rich_help_panel="Messages", help="Give up (exit 75) after this long without confirms", **TIME_LIMIT)
]
#: Its default, as typer wants it: to be parsed.
CONFIRM_TIMEOUT: Any = "20s"
