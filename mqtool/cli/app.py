"""The command tree, and the one place where an error becomes a sentence and an exit code."""

import contextlib
import functools
import gc
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from mqtool.cli import contexts, stopping, usage
from mqtool.cli.display import output
from mqtool.cli.invocation import Invocation, current, running
from mqtool.cli.usage import without_aliases
from mqtool.errors import BadExpression, ExitCode, MqtoolError

_TUTORIALS, _LEARN, _BROKER, _FAILURES = "Tutorials", "Learn", "Broker", "Failures"
_SEE, _MANAGE, _MESSAGES = "See", "Manage", "Messages"

#: Each command's module and its panel in the help. A module is imported only when its command is called: start-up time
#: is what a person feels first.
COMMANDS = {
    "send": ("send_receive", _TUTORIALS),
    "receive": ("send_receive", _TUTORIALS),
    "new-task": ("send_receive", _TUTORIALS),
    "worker": ("send_receive", _TUTORIALS),
    "emit-log": ("logs", _TUTORIALS),
    "receive-log": ("logs", _TUTORIALS),
    "rpc-server": ("rpc_server_client", _TUTORIALS),
    "rpc-client": ("rpc_server_client", _TUTORIALS),
    "publisher-confirms": ("send_receive", _TUTORIALS),
    "send-delayed": ("send_delayed", _TUTORIALS),
    "receive-delayed": ("send_delayed", _TUTORIALS),
    "send-stream": ("streams_offsets", _TUTORIALS),
    "receive-stream": ("streams_offsets", _TUTORIALS),
    "offset-tracking": ("streams_offsets", _TUTORIALS),
    "offset": ("streams_offsets", _TUTORIALS),
    "tutorial": ("tutorial", _LEARN),
    "cheat": ("learn", _LEARN),
    "help": ("learn", _LEARN),
    "completion": ("learn", _LEARN),
    "broker": ("broker_commands", _BROKER),
    "context": ("context", _BROKER),
    "wait": ("broker_commands", _BROKER),
    "list": ("list", _SEE),
    "topology": ("topology_route", _SEE),
    "route": ("topology_route", _SEE),
    "top": ("top", _SEE),
    "doctor": ("doctor", _SEE),
    "peek": ("peek_tap_move", _MESSAGES),
    "tap": ("peek_tap_move", _MESSAGES),
    "replay": ("recorded", _MESSAGES),
    "scrub": ("recorded", _MESSAGES),
    "queue": ("queue_exchange", _MANAGE),
    "exchange": ("queue_exchange", _MANAGE),
    "bind": ("queue_exchange", _MANAGE),
    "unbind": ("queue_exchange", _MANAGE),
    "user": ("users_vhosts", _MANAGE),
    "vhost": ("users_vhosts", _MANAGE),
    "permission": ("users_vhosts", _MANAGE),
    "policy": ("policy_definitions", _MANAGE),
    "definitions": ("policy_definitions", _MANAGE),
    "plugin": ("broker_commands", _MANAGE),
    "move": ("peek_tap_move", _MESSAGES),
    "delayed": ("send_delayed", _MESSAGES),
    "dlq": ("dlq", _FAILURES),
    "reconcile": ("recorded", _FAILURES),
    "drill": ("tutorial", _FAILURES),
    "fault": ("broker_commands", _FAILURES),
}


#: Objects made, less those that have gone, after which to look for cycles among them: ten times what Python does. Few
#: are in cycles, and in a stream of messages that took a tenth of the time.
_LOOK_FOR_GARBAGE = 7_000


class _Commands(TyperGroup):
    """Imports a command when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # names only, for suggestions
        self._completing = False
        _add_help(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*map(_yes_to, args[:end]), *args[end:]])

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, without_aliases(args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, panel = COMMANDS[cmd_name]
        if self._completing:
            return TyperCommand(cmd_name, callback=None, help=panel)
        command = _commands_of(module)[cmd_name]
        command.rich_help_panel = panel
        gc.freeze()  # see __main__.py: all is imported now
        gc.set_threshold(_LOOK_FOR_GARBAGE)
        gc.enable()
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands' names, for the shell; it does not wait until all of them are imported."""
        self._completing = True
        return super().shell_complete(ctx, incomplete)


@functools.cache
def _commands_of(module: str) -> Any:
    """The commands of a module, each with its help."""
    commands = typer.main.get_group(import_module(f"mqtool.cli.commands.{module}").app).commands
    for command in commands.values():
        _add_help(command)
    return commands


def _yes_to(word: str) -> str:
    """--yes takes a value only behind an equals sign, which options cannot say: `--yes jobs` is about a queue."""
    return f"--yes-to={word.removeprefix('--yes=')}" if word.startswith("--yes=") else word


def _add_help(command: Any) -> None:
    """Have --help and --help-all of a command, and of those below it, show our own pages."""
    command.add_help_option = False

    def show(context: Any, option: Any, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            output.show(_page(context, everything=option.name == "help_all"))
            raise typer.Exit

    for flags, text in ((("-h", "--help"), "Show this help"), (("--help-all",), "Show all options")):
        command.params.append(
            TyperOption(
                param_decls=list(flags),
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=show,
                help=text,
                rich_help_panel="Help",
            )
        )
    if not isinstance(command, _Commands):
        for below in getattr(command, "commands", {}).values():
            _add_help(below)


def _page(context: Any, *, everything: bool) -> str:
    from mqtool.cli.help import description, page

    words = tuple(context.command_path.split()[1:])
    described = description.describe(context.command, words)
    if not words:
        return page.overview_page(described, page.width())
    return page.command_page(described, page.width(), everything=everything)


def _take_context(name: str | None) -> None:
    """Remember the context that is named before the command, also while a shell completes the line."""
    current().context = name


def _show_version(wanted: bool) -> None:
    if wanted:
        from mqtool import __version__

        output.show(f"mqtool {__version__}")
        raise typer.Exit


#: In the environment when a shell asks what may come next.
COMPLETE = "_MQTOOL_COMPLETE"

app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def mqtool(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version")
    ] = False,
    _context: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-C",
            metavar="NAME",
            callback=_take_context,
            autocompletion=contexts.names,
            help="Broker, by the name of a context",
        ),
    ] = None,
) -> None:
    """Learn, script and operate RabbitMQ from the command line."""
    if context.invoked_subcommand is None:
        from mqtool.cli.help import page

        output.show(page.start_page())


def run() -> NoReturn:
    """Run mqtool on the process's arguments and exit."""
    output.take_standard_streams()
    stopping.install()
    if COMPLETE in os.environ:
        _complete()
    with running(Invocation()):
        code = _exit_code()
    _leave(code)


def _exit_code() -> int:
    """Run the command; turn what ended it into a message on stderr and an exit code."""
    code: int
    try:
        code = app(standalone_mode=False, prog_name="mqtool") or ExitCode.OK
    except output.ReaderGone as gone:
        code = gone.exit_code
    except BadExpression as error:
        output.error(str(error), error.hint, output.Pointer(error.text, error.column))
        code = error.exit_code
    except MqtoolError as error:
        output.error(str(error), error.hint)
        code = error.exit_code
    except typer.TyperException as error:
        code = _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + (stopping.requested() or 2)
    except Exception as error:
        if current().debug:
            raise
        output.error(
            f"unexpected error: {type(error).__name__}: {error}", "this is a bug in mqtool; --debug shows where"
        )
        code = ExitCode.FAILED
    if code == 130 and stopping.requested():  # typer turns every KeyboardInterrupt into 130
        code = 128 + (stopping.requested() or 0)
    return code


def _complete() -> None:
    """Let typer answer the shell; we have scripts of our own (completion.py), and so typer's are not set up."""
    from typer.completion import completion_init  # type: ignore[attr-defined]  # it stands there, unlisted

    completion_init()


def _usage_error(error: typer.TyperException) -> int:
    """Say what was wrong with the command line; a group of commands alone shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        output.show(_page(error.ctx, everything=False))  # type: ignore[attr-defined]
    else:
        output.error(*usage.explain(error))
    return ExitCode.USAGE


def _leave(code: int) -> NoReturn:
    """Exit at once: all is closed and written by now, and Python would take an eighth of `mqtool send` to tidy up."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # nobody reads it any more, and the exit code says so
            stream.flush()
    os._exit(code)
