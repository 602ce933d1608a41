"""The command tree, and `run()`, which runs a command and turns errors into messages and exit codes."""

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from mqtool.cli import contexts, stopping, usage
from mqtool.cli.command_line import Commands, Group
from mqtool.cli.display import output
from mqtool.cli.invocation import Invocation, current, running
from mqtool.errors import BadExpression, ExitCode, MqtoolError

_TUTORIALS, _LEARN, _BROKER = "Tutorials", "Learn", "Broker"
_SEE, _MANAGE, _MESSAGES = "See", "Manage", "Messages"

#: Each command's module and its heading in the help. Modules are imported only when their command is called, to
#: keep start-up fast.
COMMANDS = {
    "send": ("send", _TUTORIALS),
    "receive": ("receive", _TUTORIALS),
    "new-task": ("send", _TUTORIALS),
    "worker": ("worker_command", _TUTORIALS),
    "emit-log": ("logs", _TUTORIALS),
    "receive-log": ("logs", _TUTORIALS),
    "rpc-server": ("rpc_server_client", _TUTORIALS),
    "rpc-client": ("rpc_server_client", _TUTORIALS),
    "publisher-confirms": ("confirms", _TUTORIALS),
    "send-delayed": ("send_delayed", _TUTORIALS),
    "receive-delayed": ("send_delayed", _TUTORIALS),
    "send-stream": ("streams_offsets", _TUTORIALS),
    "receive-stream": ("streams_offsets", _TUTORIALS),
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
    "ui": ("ui", _SEE),
    "doctor": ("doctor", _SEE),
    "bench": ("bench", _SEE),
    "peek": ("peek_tap_move", _MESSAGES),
    "tap": ("peek_tap_move", _MESSAGES),
    "recording": ("recorded", _MESSAGES),
    "queue": ("queue_exchange", _MANAGE),
    "exchange": ("queue_exchange", _MANAGE),
    "user": ("users_vhosts", _MANAGE),
    "vhost": ("users_vhosts", _MANAGE),
    "permission": ("users_vhosts", _MANAGE),
    "policy": ("policy_definitions", _MANAGE),
    "definitions": ("policy_definitions", _MANAGE),
    "plugin": ("broker_commands", _MANAGE),
    "move": ("peek_tap_move", _MESSAGES),
    "delayed": ("send_delayed", _MESSAGES),
    "dlq": ("dlq", _MESSAGES),
    "drill": ("tutorial", _LEARN),
}


class _Root(Group):
    """The `mqtool` command. Imports the module of a subcommand only when it is called."""

    def __init__(self) -> None:
        version = usage.HelpedOption(
            ["--version"],
            is_flag=True,
            default=False,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version",
        )
        context = usage.HelpedOption(
            ["--context", "-C"],
            metavar="NAME",
            default=None,
            shell_complete=lambda _ctx, _option, typed: [name for name in contexts.names() if name.startswith(typed)],
            help="Use the broker of context NAME",
        )
        about = "Learn, script and operate RabbitMQ from the command line."
        super().__init__("mqtool", about, Commands(), params=[version, context])
        self._completing = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the subcommand. Without any arguments, show the start page."""
        if not args and not ctx.resilient_parsing:
            from mqtool.cli.help import page

            output.show(page.start_page())
            raise click.exceptions.Exit
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the subcommand by its name or an alias such as `publish`."""
        return super().resolve_command(ctx, usage.without_aliases(args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the subcommand with this name, or None; during completion, a placeholder that needs no import."""
        if cmd_name not in COMMANDS:
            return None
        module, panel = COMMANDS[cmd_name]
        if self._completing:
            return click.Command(cmd_name, help=panel)
        command = import_module(f"mqtool.cli.commands.{module}").app.makers[cmd_name]()
        command.panel = panel
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the names of subcommands for shell completion."""
        self._completing = True
        return super().shell_complete(ctx, incomplete)


def _show_version(_context: Any, _option: Any, wanted: bool) -> None:
    if wanted:
        from mqtool import __version__

        output.show(f"mqtool {__version__}")
        raise click.exceptions.Exit


app = _Root()
#: The environment variable in which a completion script passes the line to complete.
_COMPLETE = "_MQTOOL_COMPLETE"


def run() -> NoReturn:
    """Run mqtool with the process's arguments, then exit."""
    output.take_standard_streams()
    stopping.install()
    try:
        with running(Invocation()):
            code = _exit_code()
    finally:
        stopping.uninstall()
    _leave(code)


def _exit_code() -> int:
    """Run the command. Print an error, if any, on stderr and return the exit code."""
    code: int
    try:
        if _COMPLETE in os.environ:
            from mqtool.cli import completion  # imported only for completion, because that is slow

            output.write("".join(f"{line}\n" for line in completion.proposals(app, os.environ[_COMPLETE])).encode())
            return ExitCode.OK
        with app.make_context("mqtool", sys.argv[1:]) as context:
            app.invoke(context)
        code = ExitCode.OK
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except output.ReaderGone as gone:
        code = gone.exit_code
    except BadExpression as error:
        output.error(str(error), error.hint, text=error.text, column=error.column)
        code = error.exit_code
    except MqtoolError as error:
        output.error(str(error), error.hint)
        code = error.exit_code
    except click.ClickException as error:
        output.error(*usage.explain(error))
        code = ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        code = 128 + (stopping.requested() or 2)
    except Exception as error:
        if current().debug:
            raise
        output.error(
            f"unexpected error: {type(error).__name__}: {error}", "this is a bug in mqtool; --debug shows where"
        )
        code = ExitCode.FAILED
    return code


def _leave(code: int) -> NoReturn:
    """Flush and exit. If the reader of a pipe is gone, keep Python from reporting that on stderr."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
