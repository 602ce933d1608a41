"""Options of commands that run a program for each message."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from mqtool.cli.groups import in_panel
from mqtool.cli.options.values import DURATION, TIME_LIMIT
from mqtool.work.retry import RetryPolicy


@in_panel("Programs")
class ExecOptions(NamedTuple):
    """Which program to run for each message, and how."""

    command: Annotated[
        str | None,
        typer.Option("--exec", metavar="COMMAND", help="Run COMMAND for each message (mqtool help programs)"),
    ] = None
    shell: Annotated[bool, typer.Option("--shell", help="Run COMMAND with sh")] = False
    pass_url: Annotated[bool, typer.Option("--pass-url", help="Leave passwords in MQTOOL_URL for COMMAND")] = False


@in_panel("Retries")
class RetryOptions(NamedTuple):
    """When to try again what has failed."""

    retries: Annotated[int, typer.Option(min=0, help="Retry up to N times, then dead-letter")] = 5
    backoff: Annotated[float, typer.Option(show_default="1s", help="Wait before the first retry", **DURATION)] = "1s"  # type: ignore[assignment]
    backoff_factor: Annotated[float, typer.Option(min=1.0, help="Multiply the wait by N for each further retry")] = 2.0
    backoff_max: Annotated[float, typer.Option(show_default="5m", help="Longest wait", **DURATION)] = "5m"  # type: ignore[assignment]

    @property
    def policy(self) -> RetryPolicy:
        """How often, and when."""
        return RetryPolicy(self.retries, self.backoff, self.backoff_factor, self.backoff_max)


@in_panel("Duplicates")
class DedupOptions(NamedTuple):
    """Whether, and how, to do what comes twice only once."""

    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Skip messages whose message_id was handled before")
    ] = False
    store: Annotated[
        Path | None,
        typer.Option(
            "--dedup-store",
            metavar="FILE",
            show_default="in the state directory",
            help="Where handled ids are kept (SQLite)",
        ),
    ] = None
    window: Annotated[
        float, typer.Option("--dedup-window", show_default="24h", help="How long to remember an id", **TIME_LIMIT)
    ] = "24h"  # type: ignore[assignment]


@in_panel("Programs")
class ProgramOptions(NamedTuple):
    """Which program a worker runs, how often it retries, and how it tells duplicates."""

    exec: ExecOptions
    retries: RetryOptions
    dedup: DedupOptions
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Run up to N at once")] = 1

    @property
    def need_a_program(self) -> bool:
        """Whether there are options that mean nothing without a program."""
        retries = self.retries.policy != RetryPolicy()
        return self.exec.shell or self.concurrency > 1 or retries or self.dedup.deduplicate
