"""How a function becomes a command of typer: its groups of options, and what it says of itself.

    @command(app, "mqtool queue purge jobs", effect=Effect.CHANGES)
    def purge(queue: QueueNames, broker: Broker, yes: Yes = False) -> None:
        \"""Remove all ready messages from queues.\"""

A group of options, such as Broker, is a dataclass whose fields are options or other groups. typer reads the signature
of a function, so `command` writes one in which each group is replaced by its options. Groups are written with
`@dataclass(kw_only=True, eq=False, repr=False)`: nobody compares or prints them, and generating the other methods of a
frozen dataclass takes 7 % of the instructions of `mqtool send`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from types import MappingProxyType, NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from mqtool.cli import contexts, stopping
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.help.index import ALIASES
from mqtool.cli.help.option_sections import SECTIONS, help_record
from mqtool.cli.help.sentence import sentence_of
from mqtool.cli.invocation import Call, current
from mqtool.errors import ExitCode, UsageError

#: The key in a context's `meta` that says that --help-all was given.
_EVERYTHING = "mqtool.help_all"
#: Below this width, the text of an option is below its name, not beside it.
_NARROW = 60
_INDENT = 6
#: What the value of an option names if the option can be given only once: of two files, users expect both to be sent,
#: and of two conditions, both to hold. Other options override earlier ones, as scripts and aliases of shells expect.
_GIVEN_ONCE = {"CONDITION", "FILE"}


def show_all(context: typer.Context, wanted: bool) -> None:
    """Print the help with all options, and exit, if --help-all is given."""
    if wanted and not context.resilient_parsing:
        context.meta[_EVERYTHING] = True
        output.show(context.get_help())
        raise typer.Exit


NoColor = Annotated[bool, typer.Option("--no-color", help="Do not use colour")]
HelpAll = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=show_all, help="Show all options")]


class Command(TyperCommand):
    """A command whose --help shows the common options by section, and says where the others are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and record whose they are, for explaining an error in them."""
        current().parsing = ctx
        typed = args[: args.index("--")] if "--" in args else [*args]
        rest = super().parse_args(ctx, [*args])
        if not ctx.resilient_parsing:
            self._refuse_repeated(ctx, args)
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, str) and value.startswith("=") and option.name != "delimiter":
                self._refuse_equals_sign(ctx, option, value, typed)
        return rest

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        """Refuse -f one -f two, which would read only the file "two".

        Raises:
            UsageError: such an option is given more than once.
        """
        _, _, order = self.make_parser(ctx).parse_args([*args])
        for option in self.params:
            panel = getattr(option, "rich_help_panel", None)
            if option.metavar not in _GIVEN_ONCE or option.multiple or panel == "Broker":
                continue
            if order.count(option) > 1:
                flag = max(option.opts, key=len)
                raise UsageError(
                    f"{flag} can be given only once", f"only the last {flag} would count: leave the others out"
                )

    def _refuse_equals_sign(self, ctx: Any, option: Any, value: str, typed: list[str]) -> None:
        """Refuse -q=jobs, which would name the queue "=jobs".

        Raises:
            UsageError: the value is joined to a short option.
        """
        for flag in option.opts:
            joined = f"{flag[-1]}{value}"  # also after other options: -vq=jobs
            if len(flag) == len("-q") and any(re.match(r"-[^-]", each) and each.endswith(joined) for each in typed):
                name = option.make_metavar(ctx)
                raise UsageError(
                    f"{flag}=… means a value that begins with =", f"write {flag} {name}, or {flag} ={name}"
                )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options into the help."""
        shown: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *SECTIONS)}
        hidden: dict[str, list[str]] = {}
        for parameter in self.get_params(ctx):
            record = help_record(parameter, ctx)
            if record is None:
                continue
            title = getattr(parameter, "rich_help_panel", None) or ""
            section = SECTIONS.get(title)
            if parameter.param_type_name == "argument":
                shown["Arguments"].append(record)
            elif section is None:
                shown["Options"].append(record)
            elif ctx.meta.get(_EVERYTHING) or section.shows(parameter.opts):
                shown[title].append(record)
            else:
                flag, others = max(parameter.opts, key=len), hidden.setdefault(f"mqtool help {section.topic}", [])
                others.insert(0 if flag == section.foremost else len(others), flag)
        shown["More options"] = [(topic, _first_two(flags)) for topic, flags in hidden.items()]
        if hidden:
            shown["More options"].append((f"{ctx.command_path} --help-all", "all options"))
        for title, rows in shown.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=formatter.width // 3 if formatter.width > _NARROW else _INDENT)


class Group(TyperGroup):
    """A group of commands, such as `queue`, or `mqtool` itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and record whose they are, for explaining an error in them."""
        current().parsing = ctx
        return super().parse_args(ctx, args)


class CommandGroup(typer.Typer):
    """The app of a group of commands, such as `queue`. Takes typer's settings of an app."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._settings = settings
        self._adding: dict[str, Callable[[typer.Typer], None]] = {}

    def add(self, name: str, adding: Callable[[typer.Typer], None]) -> None:
        """Add a command; `adding` adds it to an app."""
        adding(self)
        self._adding[name] = adding

    def with_only(self, name: str) -> typer.Typer:
        """Return an app of this group with only the command `name`; the group itself if it has no such command.

        typer reads the options of each command in an app, which takes 12 % of the instructions of `mqtool list queues`.
        """
        if name not in self._adding:
            return self
        alone = typer.Typer(**self._settings)
        self._adding[name](alone)
        return alone


def _first_two(flags: Collection[str]) -> str:
    first = ", ".join([*flags][:2])
    return f"{first} and {len(flags) - 2} more" if len(flags) > 2 else first


def command(
    app: typer.Typer,
    *examples: str,
    effect: Effect,
    name: str | None = None,
    heading: str | None = None,
    aliases: Collection[str] = (),
    extra: tuple[str, str] | None = None,
    about: str | None = None,
    without: Collection[str] = (),
    instead: Mapping[str, Any] = MappingProxyType({}),
    cls: type[Command] = Command,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a function to `app` as a command.

    Args:
        examples: command lines that run exactly as written.
        effect: what the command does to the broker; in a protected context, this decides whether it asks first.
        name, about: the command's name and help; by default the function's name and docstring.
        heading: the heading in `mqtool --help`; only for commands that are not in a group such as `queue`.
        aliases: what other tools call the command, such as "publish" or "queue ls".
        extra: what to say, and to hint, if there is an argument too many.
        without: names of options in the function's groups that this command does not take.
        instead: annotations that replace those in the groups, for example to turn an option into an argument.
        cls: the class of the command.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = signature(function).parameters

        @wraps(function)
        def with_groups(ctx: typer.Context, *, help_all: bool, **values: Any) -> None:  # noqa: ARG001
            if values.get("into") is None:
                stopping.unblock_hangup()
            call = _call(ctx, effect, values)
            # Before anything else: a script may be waiting for the file already.
            output.remove_ready_file(values.get("ready_file"))
            arguments = {name: _argument(name, each.annotation, values, call) for name, each in parameters.items()}
            arguments |= {name: ctx for name, each in parameters.items() if each.annotation is typer.Context}
            function(**{name: value for name, value in arguments.items() if value is not Parameter.empty})

        new_parameters = [Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for each in parameters.values():
            new_parameters += _options(each.name, each.annotation, each.default, without, instead)
        new_parameters.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll))
        with_groups.__signature__ = Signature(new_parameters)  # type: ignore[attr-defined]
        with_groups.__annotations__ = {each.name: each.annotation for each in new_parameters}
        facts = {"effect": effect, "aliases": tuple(aliases), "examples": examples, "heading": heading}
        vars(with_groups).update(facts, extra=extra)
        text = "\n".join(f"  {each}" for each in examples)
        told = about or getdoc(function) or ""
        if aliases:
            told += "\n\nOther names: " + ", ".join(f"'mqtool {alias}'" for alias in aliases) + "."
        named = name or function.__name__.replace("_", "-")

        def add(to: typer.Typer) -> None:
            epilog = f"\b\nExamples:\n{text}" if examples else None
            to.command(named, cls=cls, help=told, short_help=sentence_of(told), epilog=epilog)(with_groups)

        if isinstance(app, CommandGroup):
            app.add(named, add)
        else:
            add(app)
        return function

    return decorate


def _options(
    name: str, annotation: Any, default: Any, without: Collection[str], instead: Mapping[str, Any]
) -> Iterator[Parameter]:
    """Yield the options of a parameter: itself, or those of its group and of the groups in it."""
    if is_dataclass(annotation):
        for each in fields(annotation):
            yield from _options(each.name, each.type, each.default, without, instead)
        return
    annotation = instead.get(name, annotation)
    if name not in without and get_origin(annotation) is Annotated:
        is_required = default is MISSING or (default is None and NoneType not in get_args(get_args(annotation)[0]))
        value = Parameter.empty if is_required else default
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=annotation)


def _argument(name: str, annotation: Any, values: Mapping[str, Any], call: Call) -> Any:
    """Return the value of a parameter: what typer parsed, or a group made of it; Parameter.empty for its default."""
    if annotation is Call:
        return call
    if isinstance(annotation, type) and is_dataclass(annotation):
        arguments = {each.name: _argument(each.name, each.type, values, call) for each in fields(annotation)}
        return annotation(**{name: value for name, value in arguments.items() if value is not Parameter.empty})
    return values.get(name, Parameter.empty)


def _call(context: typer.Context, effect: Effect, values: dict[str, Any]) -> Call:
    """Describe the call.

    Raises:
        UsageError: -C is given, but the command uses a broker that mqtool starts.
    """
    name = " ".join(context.command_path.split()[1:])
    if effect is Effect.OWN and context.find_root().params.get("context") is not None:
        raise UsageError(f"'{name}' does not take a context", "omit -C: it uses a broker that mqtool starts")
    typed = contexts.use_context_before(context, values)
    return Call(name, typed, effect is Effect.CHANGES and "yes" not in values, values.keys())


def group(name: str, about: str, *, heading: str, hint: Callable[[str], str | None] | None = None) -> CommandGroup:
    """Return a group of commands, such as `queue`. Without a subcommand, it shows its help, and exits with 2.

    Args:
        heading: see command().
        hint: returns the hint for a word that is none of the group's commands, or None for the usual one.
    """

    def shown_alone(ctx: typer.Context, help_all: HelpAll = False) -> None:  # noqa: ARG001
        if ctx.invoked_subcommand is None:
            output.show(ctx.get_help())
            raise typer.Exit(ExitCode.USAGE)  # in a script, an argument may have been empty

    also = [alias for alias in ALIASES if alias.startswith(f"{name} ")]
    vars(shown_alone).update(heading=heading, hint=hint)
    return CommandGroup(
        name=name,
        help=about,
        short_help=sentence_of(about),
        epilog=f"{' and '.join(map(repr, also))} mean {ALIASES[also[0]]!r}." if also else None,
        cls=Group,
        callback=shown_alone,
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
    )
