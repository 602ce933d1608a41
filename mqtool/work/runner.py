"""Processes that run programs, one after another, each for one of the worker's hands.

    worker ── requests ──> runner ── posix_spawn, body ──> program
           <── endings ───        <── stderr, status ─────

Starting a program blocks Python, with all its threads, until the program runs; so each hand has a process of its own
for it. A runner is also a guard: its pipe closes when the worker ends, even by kill -9, and it kills the program then.
The broker gives the worker's messages to another worker, and they must not be done twice. So a runner never blocks, not
even where nobody reads its stderr.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Pipe

from mqtool.work.endings import CANNOT_RUN, Answer, Ending, Request
from mqtool.work.running import serve


class Runner:
    """A process that runs programs; start it before any threads.

    Args:
        others: the runners started before it, whose pipes it must not keep open.
        environment: of its programs, before what their requests add.
    """

    def __init__(self, others: Sequence["Runner"], environment: Mapping[bytes, bytes]) -> None:
        self._pipe, theirs = Pipe()
        if os.fork() == 0:
            for inherited in (self._pipe, *(other._pipe for other in others)):
                inherited.close()
            try:
                serve(theirs, environment)
            finally:
                os._exit(0)
        theirs.close()

    def run(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Run programs one after another, and say what became of them, until that is known of all."""
        left = len(requests)
        try:
            if left:
                self._pipe.send(requests)
            while left:
                answer: Answer = self._pipe.recv()
                left -= len(answer.endings) + answer.given_back
                yield answer
        except (EOFError, ConnectionError):
            yield Answer([Ending(CANNOT_RUN, b"the process that runs programs was killed")], left - 1)
