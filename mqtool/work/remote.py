"""Programs that answer RPC requests: stdout is the reply, the exit status and stderr are its headers."""

from mqtool.errors import BadData, ExitCode
from mqtool.message import Delivery, Message
from mqtool.work.endings import CANNOT_RUN, NOT_FOUND
from mqtool.work.functions import Function
from mqtool.work.programs import Program
from mqtool.work.worker import CommandBroken

#: Headers of a reply.
EXIT_STATUS, STDERR = "exit-status", "stderr"


def of_program(program: Program) -> Function:
    """Answer each request with what the program prints for it.

    Args:
        program: captures its output; if it prints too much, the reply is an error.
    """

    def answer(request: Delivery) -> Message:
        ending = program.run(request)
        headers = {EXIT_STATUS: ending.status, STDERR: ending.stderr.decode("utf-8", "replace")}
        if ending.too_much is not None:
            raise BadData(f"the program {ending.reason}")
        if ending.timed_out is not None:
            headers |= {EXIT_STATUS: ExitCode.TIMED_OUT, STDERR: f"{headers[STDERR]}{ending.reason}\n"}
        return Message(ending.stdout, properties={"headers": headers})

    return answer


def stop_if_broken(reply: Message) -> None:
    """Check that the program behind a reply could be run.

    Raises:
        CommandBroken: it could not.
    """
    headers = reply.properties.get("headers") or {}
    if headers.get(EXIT_STATUS) in (CANNOT_RUN, NOT_FOUND):
        raise CommandBroken(f"the program cannot be run: {headers[STDERR].strip()}", "correct --exec")
