"""`run()`: runs a command, and turns errors into messages and exit codes."""

import errno
import io
import os
import sys
from contextlib import redirect_stdout, suppress
from traceback import extract_tb
from typing import NoReturn

import typer

from mqtool.cli import stopping
from mqtool.cli.commands import command_tree, error_report, without_aliases
from mqtool.cli.display import ascii_terminal, output
from mqtool.cli.help.index import ALIASES
from mqtool.cli.invocation import Invocation, current, running
from mqtool.errors import BadExpression, ExitCode, MqtoolError, NothingAnswers, TimedOut, UsageError

#: The environment variable in which a completion script passes the line to complete.
_COMPLETE = "_MQTOOL_COMPLETE"
#: The exit code that typer returns after a KeyboardInterrupt.
_INTERRUPTED = 130


def run() -> NoReturn:
    """Run mqtool with the process's arguments, then exit."""
    output.take_standard_streams()
    ascii_terminal.prepare()
    with running(Invocation()):
        try:
            stopping.install()
            code = _exit_code()
        except KeyboardInterrupt:  # just before or after the command
            code = 128 + (stopping.requested() or 2)
        finally:
            stopping.uninstall()
    _leave(code)


def _exit_code() -> int:
    """Run the command. Print an error, if any, on stderr and return the exit code."""
    code: int
    try:
        if (line := os.environ.get(_COMPLETE)) is not None:
            output.write("".join(f"{each}\n" for each in _proposals(line)).encode())
            return ExitCode.OK
        words = without_aliases(sys.argv[1:])
        try:
            code = _called(words)
        except Exception as error:
            if (report := error_report(words)) is None or isinstance(error, typer.Abort):  # Abort: after Ctrl-C
                raise
            code = report(_explained(error))
        finally:
            stopping.limit_time(None)  # what follows is not interrupted
        if code == _INTERRUPTED:
            code = 128 + (stopping.requested() or 2)
    except output.ReaderGone as gone:
        code = gone.exit_code
    except BadExpression as error:
        output.error(str(error), error.hint, text=error.text, column=error.column)
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):  # typer turns into Abort only those that it sees
        code = 128 + (stopping.requested() or 2)
    except Exception as error:
        failure = _explained(error)
        output.error(str(failure), _hint(failure))
        code = _ended_early(error) or failure.exit_code
    return code


def _called(words: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        return command_tree(words)(args=words, prog_name="mqtool", standalone_mode=False) or ExitCode.OK
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer, which prints the help, exits with 1
            raise output.ReaderGone("nobody reads the output any more") from ended
        raise


def _explained(error: Exception) -> MqtoolError:
    """Return the error to report, with a sentence and a hint. With --debug, raise one that nothing handled."""
    if isinstance(error, MqtoolError):
        return _told(error)
    if isinstance(error, typer.TyperException):
        from mqtool.cli import usage

        return UsageError(*usage.explain(error))
    if current().debug:
        raise error
    return MqtoolError(*_unexpected(error))


def _unexpected(error: Exception) -> tuple[str, str | None]:
    """Return a sentence about an exception that nothing handled, and a hint."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # for example, from typer, which prints help
        return f"cannot write: {error.strerror}", None
    where = f"it is at {_place(error)}" if current().debug is None else "--debug shows where"
    return f"unexpected error: {type(error).__name__}: {error}", f"this is a bug in mqtool; {where}"


def _told(error: MqtoolError) -> MqtoolError:
    """Return the error to report: if the time limit cut off cleaning up after an error, that error."""
    while isinstance(error, stopping.OutOfTime) and isinstance(error.__context__, MqtoolError):
        error = error.__context__
    return error


def _hint(error: MqtoolError) -> str | None:
    """Return the hint of an error. If no broker answers, it names the tutorial that runs here, or the URL's source."""
    source = current().url_source
    if isinstance(error, NothingAnswers) and any(host in str(error) for host in ("localhost", "127.0.0.1")):
        from mqtool.broker import tutorial_broker

        if (tutorial := tutorial_broker.running()) is not None:
            return tutorial.hint
        last = tutorial_broker.last()
        if last is not None and f":{last.port}:" in str(error) and source in ("from AMQP_URL", "from MQTOOL_URL"):
            return f"the tutorial that ran there has ended: unset {source.removeprefix('from ')}"
    if source is not None and isinstance(error.__cause__ if isinstance(error, TimedOut) else error, NothingAnswers):
        return f"{error.hint}; the URL is {source}"
    return error.hint


def _ended_early(error: BaseException) -> int | None:
    """Return the exit code if the command was already ending when the error occurred, such as when cleaning up.

    It is 128 + n if signal n was ending the command, 130 if a question got no answer, or that of ReaderGone.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt | typer.Abort | output.ReaderGone):
        cause = cause.__context__
    if isinstance(cause, output.ReaderGone):
        return cause.exit_code
    return None if cause is None else 128 + (stopping.requested() or 2)


def _place(error: BaseException) -> str:
    """Return the file and the line in which an error was raised."""
    last = extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _proposals(line: str) -> list[str]:
    """Return the proposals to complete a command line, each followed by a tab and its description if it has one.

    typer finds them, so no parser of our own has to know which option or argument is at the cursor. It documents no
    function for that, but the script that it installs for fish asks as this does, and must go on working after an
    update of typer. `.ci/typer` runs the tests of completion with the oldest typer, and the other tests use the newest.

    Args:
        line: the line up to the cursor.
    """
    name, _, rest = line.partition(" ")
    for alias, meant in ALIASES.items():
        if rest.startswith(f"{alias} "):
            rest = meant + rest.removeprefix(alias)
    words = rest.split()
    before = words if rest[-1:].isspace() else words[:-1]
    asked = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": f"{name} {rest}"}
    os.environ |= {_COMPLETE: "complete_fish"} | asked
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        command_tree(before, completes=True)(prog_name="mqtool")
    option = rest.rpartition(" ")[2].partition("=")
    value_of = f"{option[0]}=" if option[0].startswith("--") and option[1] else ""
    return [value_of + each for each in printed.getvalue().splitlines() if "-completion\t" not in each]


def _leave(code: int) -> NoReturn:
    """Flush and exit. If the reader of a pipe is gone, or a disk is full, keep Python from reporting that on stderr."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
