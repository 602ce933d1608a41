"""mqtool bench."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from mqtool.benching import charts, comparison
from mqtool.benching.plan import IN_FLIGHT, PREFETCH, Plan
from mqtool.benching.result import Result, Snapshot
from mqtool.benching.run import Place, Run, Timed
from mqtool.cli import contexts, stopping
from mqtool.cli.access import Access
from mqtool.cli.chosen_broker import is_same_node
from mqtool.cli.command_line import Argument, Option, OptionGroup, duration_or_seconds, size
from mqtool.cli.display import bench_report, output
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import DURATION, RATE, TIME_LIMIT, Commands, ManagedBroker, Yes, ask
from mqtool.duration import parse_duration
from mqtool.errors import BadData, MqtoolError, UsageError
from mqtool.spelling import counted, did_you_mean

app = Commands()
_QUEUE_TYPES = ("classic", "quorum", "stream")
#: Seconds to publish in a run, and in each run of a comparison or of --vary.
_DURATION, _SHORT = 10.0, 5.0


def _sizes(text: str) -> tuple[int, int]:
    """Parse a size, or a range of sizes such as 100-4KiB."""
    small, dash, large = text.partition("-")
    sizes = size(small), size(large) if dash else size(small)
    if sizes[0] > sizes[1]:
        raise ValueError(f"{text!r} is not a range of sizes: the first one is larger")
    return sizes


def _acknowledgements(text: str) -> int:
    """Parse --ack; return how many messages to acknowledge at once, 0 for none."""
    if text in ("each", "auto"):
        return int(text == "each")
    return _number(text, "each, auto or a number of messages")


def _number(text: str, what: str = "a number from 1") -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"{text!r} is not {what}")
    return int(text)


#: What --vary can change: the setting of the plan, and the parser of its values.
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
    """What --vary changes from run to run: its name, the setting of the plan, and pairs of text and value."""

    name: str
    setting: str
    steps: Sequence[tuple[str, Any]]


def _variation(text: str) -> Variation:
    name, equals, values = text.partition("=")
    if not equals or name not in _VARIABLE:
        raise ValueError(f"{text!r} does not begin with one of {', '.join(_VARIABLE)}, and =")
    setting, parse = _VARIABLE[name]
    return Variation(name, setting, [(each, parse(each)) for each in values.split(",")])


class Load(OptionGroup):
    """Options that set the load."""

    PANEL: ClassVar = "Load"

    rate: Annotated[float | None, Option(help="Messages per second (default: as confirmed)", **RATE)] = None
    duration: Annotated[
        float | None,
        Option(help="Publish for this long", show_default="10s, or 5s for each of several runs", **TIME_LIMIT),
    ] = None
    messages: Annotated[int | None, Option("-c", "-n", min=1, help="Publish N messages")] = None
    sizes: Annotated[
        Any, Option("--size", parser=_sizes, metavar="SIZE", help="Bytes of a body, or a range: 100-4KiB")
    ] = (100, 100)
    bodies: Annotated[Path | None, Option(metavar="FILE", help="Take the bodies from the lines of FILE")] = None
    publishers: Annotated[int, Option(min=1, max=100, help="Publishers, a process each")] = 1
    consumers: Annotated[int, Option(min=1, max=100, help="Consumers, a process each")] = 1
    queue_type: Annotated[Literal["classic", "quorum", "stream"], Option(help="Type of the queue")] = "quorum"
    confirms: Annotated[int, Option(min=1, help="Messages in flight of each publisher")] = IN_FLIGHT
    ack: Annotated[
        Any, Option(parser=_acknowledgements, metavar="each|N|auto", help="Acknowledge each message, every N, or none")
    ] = 1
    prefetch: Annotated[int, Option(min=0, max=65535, help="Deliveries to hold unacknowledged")] = PREFETCH
    exchange: Annotated[
        Literal["direct", "fanout", "topic", "headers"] | None, Option(help="Publish through an exchange of this type")
    ] = None
    persistent: Annotated[bool, Option("--persistent/--transient", help="Delivery mode 2, or 1")] = True
    ttl: Annotated[float | None, Option(help="Expire messages after this long", **DURATION)] = None
    delay: Annotated[
        float, Option(help="Delay messages, in a wait queue", parser=parse_duration, metavar="DURATION")
    ] = 0.0
    rpc: Annotated[bool, Option(help="Consumers reply; measure the round trip")] = False
    churn: Annotated[
        Literal["connections", "channels", "queues", "bindings"] | None,
        Option(help="Create and remove these instead of publishing"),
    ] = None
    warm_up: Annotated[float, Option(help="Do not measure the first part of a run", **DURATION)] = 0.0

    def plan(self, default: float) -> Plan:
        """The plan of a run.

        Args:
            default: the duration in seconds, unless an option limits the run.

        Raises:
            UsageError: options contradict each other.
        """
        return Plan(
            rate=self.rate,
            duration=default if self.duration is None and self.messages is None else self.duration,
            messages=self.messages,
            sizes=self.sizes,
            bodies=self.bodies,
            publishers=self.publishers,
            consumers=self.consumers,
            queue_type=self.queue_type,
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
        ).checked()


class Runs(OptionGroup):
    """Options for what happens during a run, and for several runs."""

    PANEL: ClassVar = "Load"

    at: Annotated[
        list[Any] | None,
        Option(nargs=2, parser=str, metavar="TIME COMMAND", help="Run a shell command at a time of the run"),
    ] = None
    during: Annotated[str | None, Option(metavar="COMMAND", help="Run a shell command after a third of the run")] = None
    vary: Annotated[
        Any | None, Option(parser=_variation, metavar="NAME=A,B,C", help="A run for each value, such as rate=500,1000")
    ] = None
    rounds: Annotated[int, Option(min=2, max=100, help="With compare: runs of each")] = 5

    def commands(self, plan: Plan) -> list[Timed]:
        """The commands to run, and when.

        Raises:
            UsageError: a time is not valid.
        """
        found = [Timed((plan.duration or _SHORT) / 3, self.during)] if self.during is not None else []
        for at, command in self.at or ():
            try:
                found.append(Timed(duration_or_seconds(at), command))
            except ValueError as error:
                raise UsageError(f"--at: {error}", "write it like this: --at 5s 'COMMAND'") from error
        return found


class Report(OptionGroup):
    """Options for the result."""

    as_json: Annotated[bool, Option("--json", help="Print each result as a JSON object")] = False
    as_csv: Annotated[bool, Option("--csv", help="Print results as CSV, a line each")] = False
    plot: Annotated[Path | None, Option(metavar="FILE", help="Draw charts into FILE.svg or FILE.html")] = None

    def check(self) -> None:
        """Check that the options can be combined.

        Raises:
            UsageError: they cannot, or the chart's format is unknown.
        """
        if self.as_json and self.as_csv:
            raise UsageError("--json and --csv cannot be combined", "use only one of them")
        if self.plot is not None and self.plot.suffix not in (".svg", ".html"):
            raise UsageError(f"unknown kind of chart {self.plot.name!r}", "its name must end with .svg or .html")

    def show(self, result: Result) -> None:
        """Print the result of one run, and draw the chart."""
        if self.as_json:
            output.show_json(result.as_json())
        elif self.as_csv:
            bench_report.show_csv([result])
        else:
            bench_report.show(result)
        self.draw(result)

    def draw(self, result: Result) -> None:
        """Draw the chart.

        Raises:
            MqtoolError: the file cannot be written.
        """
        if self.plot is None:
            return
        drawn = charts.svg(result) if self.plot.suffix == ".svg" else charts.html(result, bench_report.lines(result))
        try:
            self.plot.write_text(drawn, "utf-8")
        except OSError as error:
            raise MqtoolError(f"cannot write {self.plot}: {error.strerror}") from error


def _proposals(*_: Any) -> list[str]:
    return ["compare", *_QUEUE_TYPES, *contexts.names()]


@app.command(
    "mqtool bench",
    "mqtool bench --rate 1000 --duration 30s",
    "mqtool bench --vary rate=1000,2000,5000",
    "mqtool bench compare classic quorum",
)
def bench(
    broker: ManagedBroker,
    load: Load,
    runs: Runs,
    report: Report,
    yes: Yes = False,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[compare A B]", help="Compare two contexts, URLs, queue types or result files", complete=_proposals
        ),
    ] = None,
) -> None:
    """Measure the throughput and latency of a broker.

    Publishers and consumers are processes of their own, and use a queue of their own. Latency counts from the time at
    which a message was due. All messages are numbered: if a confirmed one is lost, the exit code is 1.
    """
    report.check()
    several = bool(words) or runs.vary is not None
    plan = load.plan(_SHORT if several else _DURATION)
    if words:
        _compare(words, broker, plan, runs, report, yes=yes)
        return
    access = broker.access()
    _ask(access, plan, yes=yes)
    if runs.vary is not None:
        _vary(access, plan, runs, runs.vary, report)
        return
    result = _run(access, plan, runs.commands(plan))
    report.show(result)
    _check([result])


def _ask(access: Access, plan: Plan, *, yes: bool) -> None:
    """Ask before a broker is loaded that mqtool has not started."""
    from mqtool.amqp import parse_addresses
    from mqtool.broker import state

    nodes = [address for started in state.load_all() for address in parse_addresses(started.url)]
    is_own = any(is_same_node(access.address, node) for node in nodes)
    how_long = f"for {plan.duration:g} s" if plan.duration is not None else f"with {plan.messages:,} messages"
    ask(f"put load on {access.address} {how_long}", access, yes=yes, is_safe=is_own)


def _run(access: Access, plan: Plan, commands: Sequence[Timed] = (), label: str = "") -> Result:
    """Perform a run, with a progress bar; Ctrl-C ends it early, with the result so far."""
    fraction = 0.0
    progress = Progress(f"confirmed{label}", fraction=lambda: fraction)

    def show(snapshot: Snapshot) -> None:
        nonlocal fraction
        by_time = snapshot.seconds / plan.duration if plan.duration else 0.0
        by_count = snapshot.confirmed / plan.total if plan.total else 0.0
        fraction = min(1.0, max(by_time, by_count))
        progress.show(snapshot.confirmed)

    place = Place(access.addresses, access.tls, access.management)
    with Run(plan, place, commands=commands, notice=output.notice) as run, stopping.calling(run.stop):
        try:
            return run.perform(show)
        finally:
            progress.stop()


def _check(results: Sequence[Result]) -> None:
    """Print remarks about results.

    Raises:
        MqtoolError: confirmed messages were lost.
        SystemExit: a run was interrupted.
    """
    for remark in dict.fromkeys(each for result in results for each in bench_report.remarks(result)):
        output.warning(remark)
    if lost := sum(result.lost for result in results if result.plan.ttl is None):
        raise MqtoolError(f"{counted(lost, 'confirmed message')} did not arrive")
    stopping.exit_if_requested()


def _vary(access: Access, plan: Plan, runs: Runs, variation: Variation, report: Report) -> None:
    """Perform a run for each value of a setting."""
    name, results = variation.name, []
    for text, value in stopping.until_requested(variation.steps):
        plan_of_step = plan.with_value(variation.setting, value).checked()
        result = _run(access, plan_of_step, runs.commands(plan_of_step), f", {name} {text}")
        results.append(result)
        if report.as_json:
            output.show_json({"step": f"{name}={text}", **result.as_json()})
    steps = [text for text, _ in variation.steps]
    if report.as_csv:
        bench_report.show_csv(results)
    elif not report.as_json:
        bench_report.show_steps(name, steps, results)
    if results:
        report.draw(results[-1])
        _check(results)


class Side(NamedTuple):
    """One of the two things to compare: its name, and how to reach and load it; or the results in a file."""

    name: str
    access: Access | None
    plan: Plan
    results: Sequence[dict[str, Any]] = ()


def _compare(words: Sequence[str], broker: ManagedBroker, plan: Plan, runs: Runs, report: Report, *, yes: bool) -> None:
    if words[0] != "compare" or len(words) != 3:
        hint = did_you_mean(words[0], ["compare"], "mqtool bench compare classic quorum")
        raise UsageError("bench takes either no words, or compare and two names", hint)
    sides = [_side(word, broker, plan) for word in words[1:]]
    found: list[list[dict[str, Any]]] = [[*side.results] for side in sides]
    live = [side for side in sides if side.access is not None]
    if len(live) == 1:
        raise UsageError("a file can only be compared with another file", "mqtool bench --json > FILE makes one")
    results = []
    for side in live:
        _ask(side.access, side.plan, yes=yes)  # type: ignore[arg-type]
    for number in stopping.until_requested(range(runs.rounds) if live else ()):
        for index in (0, 1) if number % 2 == 0 else (1, 0):  # in turns, so that neither is always the first
            side = live[index]
            result = _run(side.access, side.plan, label=f", {side.name}, round {number + 1} of {runs.rounds}")  # type: ignore[arg-type]
            if not result.stopped:
                found[index].append(result.as_json())
                results.append(result)
    complete = min(map(len, found))
    pairs = [each[:complete] for each in found] if live else found
    names = (sides[0].name, sides[1].name)
    if complete:
        compared = comparison.compare(*pairs, paired=bool(live))
        bench_report.show_comparison(names, compared, pairs, as_json=report.as_json, as_csv=report.as_csv)
    if results:
        _check(results)
    stopping.exit_if_requested()


def _side(word: str, broker: ManagedBroker, plan: Plan) -> Side:
    """What a word of compare stands for: a queue type, a file, a URL, or a context."""
    if word in _QUEUE_TYPES:
        return Side(word, broker.access(), plan.with_value("queue_type", word))
    if Path(word).is_file():
        return Side(Path(word).name, None, plan, _results_in(Path(word)))
    options, call = broker.options, broker.options.call
    is_url = "://" in word
    named = call._replace(typed=call.typed - {"url", "context"} | {"url" if is_url else "context"})
    chosen = {"url": word, "context": None} if is_url else {"url": None, "context": word}
    access = broker.changed(options=options.changed(**chosen, call=named), management=None).access()
    return Side(access.context or str(access.address), access, plan)


def _results_in(path: Path) -> list[dict[str, Any]]:
    """The results in a file that `bench --json` has written.

    Raises:
        BadData: the file has something else.
    """
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        comparison.compare(found, found, paired=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} has no results of 'mqtool bench --json'") from error
    if not found:
        raise BadData(f"{path} is empty")
    return found
