"""Options of bench: the load, and what happens during a run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from mqtool.benching.plan import IN_FLIGHT, PREFETCH, PROTOCOLS, SIZES, STREAM, BenchPlan, Timed
from mqtool.cli.completion import names_of
from mqtool.cli.options import RATE
from mqtool.cli.options.queue_options import StreamPort
from mqtool.cli.values import DURATION, TIME_LIMIT, parsed, size
from mqtool.duration import parse_duration, parse_duration_or_seconds
from mqtool.errors import UsageError

#: Default seconds to publish in a single run, and in each run of a comparison or of --vary.
LONG, SHORT = 10.0, 5.0
BenchProtocol = Annotated[
    Literal["amqp0.9.1", "amqp1.0", "stream"] | None,
    typer.Option(
        help="Protocol of publishers and consumers",
        show_default=PROTOCOLS[0],
        envvar="MQTOOL_PROTOCOL",
        rich_help_panel="Load",
    ),
]


def _sizes(text: str) -> tuple[int, int]:
    """Parse a size, or a range of sizes such as 100-4KiB."""
    small, dash, large = text.partition("-") if not text.startswith("-") else (text, "", "")
    sizes = size(small), size(large) if dash else size(small)
    if sizes[0] > sizes[1]:
        raise ValueError(f"{text!r} is not a range of sizes: the first one is larger")
    return sizes


def _acknowledgements(text: str) -> int:
    """Parse --ack. Return how many messages to acknowledge at once; 0 for no acknowledgements."""
    if text in ("each", "auto"):
        return int(text == "each")
    return _number(text, "each, auto or a number of messages")


def _number(text: str, what: str = "a number from 1") -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"{text!r} is not {what}")
    return int(text)


#: The names that --vary accepts: for each, the plan's setting and the parser for its values.
_VARIABLE: dict[str, tuple[str, Any]] = {
    "rate": ("rate", RATE["parser"]),
    "size": ("sizes", _sizes),
    "publishers": ("publishers", _number),
    "consumers": ("consumers", _number),
    "confirms": ("in_flight", _number),
    "prefetch": ("prefetch", _number),
    "ack": ("acknowledge", _acknowledgements),
}


class Variation(NamedTuple):
    """A parsed --vary option: the name that it varies, the plan's setting, and a step for each run.

    Attributes:
        steps: pairs of a value as text, as the user typed it, and the parsed value.
    """

    name: str
    setting: str
    steps: Sequence[tuple[str, Any]]


def _variation(text: str) -> Variation:
    name, equals, values = text.partition("=")
    if not equals or name not in _VARIABLE:
        raise ValueError(f"{text!r} is not NAME=A,B,C with one of the names {', '.join(_VARIABLE)}")
    setting, parse = _VARIABLE[name]
    return Variation(name, setting, [(each, parse(each)) for each in values.split(",")])


@dataclass(kw_only=True, eq=False, repr=False)
class Load:
    """Options that set the load."""

    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", help="Total messages per second (default: as fast as confirmed)", rich_help_panel="Load", **RATE
        ),
    ] = None
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            help="Publish for this long",
            show_default="10s, or 5s for each of several runs",
            rich_help_panel="Load",
            **TIME_LIMIT,
        ),
    ] = None
    messages: Annotated[
        int | None,
        typer.Option("--count", "-c", "-n", min=1, help="Publish N messages", rich_help_panel="Load", metavar="N"),
    ] = None
    also_messages: Annotated[int | None, typer.Option("--messages", min=1, metavar="N", hidden=True)] = None
    sizes: Annotated[
        Any,
        typer.Option(
            "--size",
            parser=parsed(_sizes),
            metavar="SIZE",
            help="Bytes per body, or a range such as 100-4KiB",
            show_default="-".join(map(str, dict.fromkeys(SIZES))),
            rich_help_panel="Load",
        ),
    ] = SIZES
    bodies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use the lines of FILE as bodies", rich_help_panel="Load")
    ] = None
    publishers: Annotated[
        int,
        typer.Option(min=1, max=100, help="Publishers, each in its own process", rich_help_panel="Load", metavar="N"),
    ] = 1
    consumers: Annotated[
        int,
        typer.Option(min=1, max=100, help="Consumers, each in its own process", rich_help_panel="Load", metavar="N"),
    ] = 1
    queue_type: Annotated[
        Literal["classic", "quorum", "stream"] | None,
        typer.Option(help="Type of the queue", show_default="quorum", rich_help_panel="Load"),
    ] = None
    confirms: Annotated[
        int, typer.Option(min=1, help="Messages in flight per publisher", rich_help_panel="Load", metavar="N")
    ] = IN_FLIGHT
    ack: Annotated[
        Any,
        typer.Option(
            parser=parsed(_acknowledgements),
            metavar="each|N|auto",
            help="Acknowledge each message, every N messages, or on delivery",
            rich_help_panel="Load",
        ),
    ] = 1
    prefetch: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="Hold up to N unacknowledged messages per consumer",
            rich_help_panel="Load",
            metavar="N",
        ),
    ] = PREFETCH
    exchange: Annotated[
        Literal["direct", "fanout", "topic", "headers"] | None,
        typer.Option(
            help="Publish through an exchange of this type",
            rich_help_panel="Load",
            autocompletion=names_of("exchanges"),
        ),
    ] = None
    persistent: Annotated[
        bool,
        typer.Option(
            "--persistent/--transient", help="Publish persistent or transient messages", rich_help_panel="Load"
        ),
    ] = True
    ttl: Annotated[
        float | None, typer.Option(help="Expire messages after this long", rich_help_panel="Load", **DURATION)
    ] = None
    delay: Annotated[
        float,
        typer.Option(
            help="Delay messages by this long, in a wait queue",
            parser=parsed(parse_duration),
            metavar="DURATION",
            rich_help_panel="Load",
        ),
    ] = 0.0
    rpc: Annotated[
        bool, typer.Option("--rpc", help="Let consumers reply, and measure round trips", rich_help_panel="Load")
    ] = False
    churn: Annotated[
        Literal["connections", "channels", "queues", "bindings"] | None,
        typer.Option(help="Create and remove objects of this kind; publish nothing", rich_help_panel="Load"),
    ] = None
    warm_up: Annotated[
        float,
        typer.Option(help="Start measuring this long after the start of a run", rich_help_panel="Load", **DURATION),
    ] = 0.0

    def plan(self, default: float, protocol: str) -> BenchPlan:
        """Return the plan of a run.

        Args:
            default: the duration in seconds if no option limits the run.
            protocol: the protocol of publishers and consumers.

        Raises:
            UsageError: options contradict each other.
        """
        messages = self.messages or self.also_messages
        return BenchPlan(
            rate=self.rate,
            duration=default if self.duration is None and messages is None else self.duration,
            messages=messages,
            sizes=tuple(self.sizes),
            bodies=self.bodies,
            publishers=self.publishers,
            consumers=self.consumers,
            queue_type=self.queue_type or ("stream" if protocol == STREAM else "quorum"),
            prefetch=self.prefetch,
            in_flight=self.confirms,
            acknowledge=self.ack,
            exchange=self.exchange,
            persistent=self.persistent,
            ttl=self.ttl,
            warm_up=self.warm_up,
            delay=self.delay,
            rpc=self.rpc,
            churn=self.churn,
            protocol=protocol,
        ).checked()


@dataclass(kw_only=True, eq=False, repr=False)
class Runs:
    """Options for what happens during a run, and for multiple runs."""

    at: Annotated[
        list[Any] | None,
        typer.Option(
            parser=str,
            metavar="TIME COMMAND",
            help="Run a shell command this long after the start",
            rich_help_panel="Load",
        ),
    ] = None
    during: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Run a shell command after a third of the run", rich_help_panel="Load"),
    ] = None
    vary: Annotated[
        Any | None,
        typer.Option(
            parser=parsed(_variation),
            metavar="NAME=A,B,C",
            help="Do one run for each value, as in rate=500,1000",
            rich_help_panel="Load",
        ),
    ] = None
    rounds: Annotated[
        int,
        typer.Option(
            min=2, max=100, help="With compare: number of runs of each side", rich_help_panel="Load", metavar="N"
        ),
    ] = 5
    stream_port: StreamPort = None

    def commands(self, plan: BenchPlan) -> list[Timed]:
        """Return the shell commands to execute during a run, each with its time.

        Raises:
            UsageError: a time is not valid.
        """
        found = [Timed((plan.duration or SHORT) / 3, self.during)] if self.during is not None else []
        for at, command in self.at or ():
            try:
                found.append(Timed(parse_duration_or_seconds(at), command))
            except ValueError as error:
                raise UsageError(f"--at: {error}", "write it like this: --at 5s 'COMMAND'") from error
        return found
