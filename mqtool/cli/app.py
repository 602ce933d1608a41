"""The command tree, and the one place where an error becomes a sentence and an exit code."""

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperOption

from mqtool.cli import contexts, stopping, usage
from mqtool.cli.command_line import Commands, Group
from mqtool.cli.display import output
from mqtool.cli.invocation import Invocation, current, running
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


class _Root(Group):
    """`mqtool` itself. The module of a command is imported when the command is asked for."""

    def __init__(self) -> None:
        version = TyperOption(
            param_decls=["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version",
        )
        context = TyperOption(
            param_decls=["--context", "-C"],
            metavar="NAME",
            autocompletion=lambda _ctx, _words, typed: [name for name in contexts.names() if name.startswith(typed)],
            help="Broker, by the name of a context",
        )
        about = "Learn, script and operate RabbitMQ from the command line."
        super().__init__("mqtool", about, Commands(), params=[version, context])
        self._completing = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words before the command's name; without any, say how to begin."""
        if not args and not ctx.resilient_parsing:
            from mqtool.cli.help import page

            output.show(page.start_page())
            raise typer.Exit
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that words name, also by an alias."""
        return super().resolve_command(ctx, usage.without_aliases(args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None; while a shell completes names, without importing it."""
        if cmd_name not in COMMANDS:
            return None
        module, panel = COMMANDS[cmd_name]
        if self._completing:
            return TyperCommand(cmd_name, help=panel)
        command = import_module(f"mqtool.cli.commands.{module}").app.makers[cmd_name]()
        command.rich_help_panel = panel
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The names of commands, for the shell."""
        self._completing = True
        return super().shell_complete(ctx, incomplete)


def _show_version(_context: Any, _option: Any, wanted: bool) -> None:
    if wanted:
        from mqtool import __version__

        output.show(f"mqtool {__version__}")
        raise typer.Exit


#: In the environment when a shell asks what may come next.
COMPLETE = "_MQTOOL_COMPLETE"

app = _Root()


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
        code = app.main(standalone_mode=False, prog_name="mqtool") or ExitCode.OK
    except output.ReaderGone as gone:
        code = gone.exit_code
    except BadExpression as error:
        output.error(str(error), error.hint, output.Pointer(error.text, error.column))
        code = error.exit_code
    except MqtoolError as error:
        output.error(str(error), error.hint)
        code = error.exit_code
    except typer.TyperException as error:
        output.error(*usage.explain(error))
        code = ExitCode.USAGE
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


def _leave(code: int) -> NoReturn:
    """Exit. If the reader of a pipe has gone, the exit code says so, and Python must not write to it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
