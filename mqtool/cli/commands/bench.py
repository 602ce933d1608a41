"""mqtool bench."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mqtool.amqp import Address
from mqtool.benching import charts, comparison
from mqtool.benching.plan import PROTOCOLS, STREAM, BenchPlace, BenchPlan, Timed
from mqtool.benching.result import Result, Snapshot
from mqtool.benching.run import Run
from mqtool.cli import contexts, stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, protocol_in_use
from mqtool.cli.chosen_broker import running_at
from mqtool.cli.command_line import Command, command
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import bench_report, output
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.options.bench_options import LONG, SHORT, BenchProtocol, Load, Runs, Variation
from mqtool.errors import BadData, MqtoolError, SomeFailed, UsageError
from mqtool.spelling import counted

app = typer.Typer()
_QUEUE_TYPES = ("classic", "quorum", "stream")


@dataclass(kw_only=True, eq=False, repr=False)
class Report:
    """Options that choose how results are printed, and whether charts are drawn."""

    as_json: Annotated[bool, typer.Option("--json", help="Print each result as a JSON object")] = False
    as_csv: Annotated[bool, typer.Option("--csv", help="Print results as CSV, one line per result")] = False
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write charts to FILE (.svg or .html)")] = None

    def check(self) -> None:
        """Validate the options before the benchmark starts.

        Raises:
            UsageError: the options cannot be combined, the chart's format is unknown, or its file exists or cannot be
                created.
        """
        if self.as_json and self.as_csv:
            raise UsageError("--json and --csv cannot be combined", "use only one of them")
        if self.plot is not None and self.plot.suffix not in (".svg", ".html"):
            raise UsageError(f"unknown kind of chart {self.plot.name!r}", "its name must end with .svg or .html")
        if self.plot is not None and os.path.lexists(self.plot):
            raise UsageError(f"{self.plot} already exists", "name another file, or delete this one")
        if self.plot is not None and not os.access(self.plot.parent, os.W_OK):
            raise UsageError(f"cannot write {self.plot}", "check its directory and permissions")

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
            with self.plot.open("x", encoding="utf-8") as file:  # somebody may have created it during the run
                try:
                    file.write(drawn)
                    file.flush()
                except OSError:
                    self.plot.unlink()
                    raise
        except OSError as error:
            raise MqtoolError(f"cannot write {self.plot}: {error.strerror}") from error


def _proposals() -> list[str]:
    return ["compare", *_QUEUE_TYPES, *contexts.names()]


class _TakesTwoWords(Command):
    """The command; typer itself has no repeatable option that takes two words."""

    def __init__(self, name: str | None, *, params: list[Any], **settings: Any) -> None:
        next(each for each in params if each.name == "at").nargs = 2
        super().__init__(name, params=params, **settings)


@command(
    app,
    "mqtool bench",
    "mqtool bench --rate 1000 --duration 30s",
    "mqtool bench --vary rate=1000,2000,5000",
    "mqtool bench compare classic quorum",
    effect=Effect.CHANGES,
    cls=_TakesTwoWords,
    heading="See",
    instead={"protocol": BenchProtocol},
)
def bench(
    broker: ManagedBroker,
    load: Load,
    runs: Runs,
    report: Report,
    yes: Yes = False,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[compare A B]",
            help="Compare two contexts, URLs, queue types, protocols or files",
            autocompletion=_proposals,
        ),
    ] = None,
) -> None:
    """Measure the throughput and latency of a broker.

    Each publisher and consumer is a separate process, and the queue is created for the benchmark. Latency is measured
    from the time at which a message was scheduled to be sent. If a confirmed message is lost, the exit code is 1.
    """
    report.check()
    several = bool(words) or runs.vary is not None
    plan = load.plan(SHORT if several else LONG, str(protocol_in_use(broker.options)))
    if words:
        _compare(words, broker, plan, runs, report, yes=yes)
        return
    access = access_to(broker)
    _ask(access, plan, yes=yes)
    if runs.vary is not None:
        _vary(access, plan, runs, runs.vary, report)
        return
    result = _run(_place(access, runs.stream_port), plan, runs.commands(plan))
    report.show(result)
    _check([result])


def _ask(access: Access, plan: BenchPlan, *, yes: bool) -> None:
    """Ask for confirmation before putting load on a broker that mqtool did not start."""
    is_own = running_at(access.address) is not None
    how_long = f"for {plan.duration:g} s" if plan.duration is not None else f"with {plan.messages:,} messages"
    ask(f"put load on {access.address} {how_long}", access, yes=yes, is_safe=is_own)


def _run(place: BenchPlace, plan: BenchPlan, commands: Sequence[Timed] = (), label: str = "") -> Result:
    """Perform a run with a progress bar. If Ctrl-C ends the run early, return the result so far."""
    fraction = 0.0
    progress = Progress(f"confirmed{label}", fraction=lambda: fraction)

    def show(snapshot: Snapshot) -> None:
        nonlocal fraction
        by_time = snapshot.seconds / plan.duration if plan.duration else 0.0
        by_count = snapshot.confirmed / plan.total if plan.total else 0.0
        fraction = min(1.0, max(by_time, by_count))
        progress.show(snapshot.confirmed)

    run = Run(plan, place, commands=commands, notice=output.notice)
    with stopping.calling(run.stop), run:
        try:
            return run.perform(show)
        finally:
            progress.stop()


def _check(results: Sequence[Result]) -> None:
    """Print warnings about the results.

    Raises:
        MqtoolError: confirmed messages were lost.
        SomeFailed: a command of --at or --during failed.
        SystemExit: a run was interrupted.
    """
    for remark in dict.fromkeys(each for result in results for each in bench_report.remarks(result)):
        output.warning(remark)
    if lost := sum(result.lost for result in results if result.plan.ttl is None):
        raise MqtoolError(f"{counted(lost, 'confirmed message')} did not arrive")
    if failed := [command for result in results for command in result.failed_commands]:
        raise SomeFailed(f"a command failed during the run: {failed[0]}")
    stopping.exit_if_requested()


def _vary(access: Access, plan: BenchPlan, runs: Runs, variation: Variation, report: Report) -> None:
    """Perform one run for each value of a setting."""
    name, results = variation.name, []
    steps = [(text, plan.with_value(variation.setting, value).checked()) for text, value in variation.steps]
    for text, plan_of_step in stopping.until_requested(steps):
        result = _run(_place(access, runs.stream_port), plan_of_step, runs.commands(plan_of_step), f", {name} {text}")
        results.append(result)
        if report.as_json:
            output.show_json({"step": f"{name}={text}", **result.as_json()})
    if report.as_csv:
        bench_report.show_csv(results)
    elif not report.as_json:
        bench_report.show_steps(name, [text for text, _ in steps], results)
    if results:
        report.draw(results[-1])
        _check(results)


class Side(NamedTuple):
    """One side of a comparison: a broker and the load to put on it, or results that were read from a file.

    Attributes:
        access: the broker; None for a file.
        results: the contents of the file.
    """

    name: str
    access: Access | None
    plan: BenchPlan
    results: Sequence[dict[str, Any]] = ()


def _compare(
    words: Sequence[str], broker: ManagedBroker, plan: BenchPlan, runs: Runs, report: Report, *, yes: bool
) -> None:
    if words[0] != "compare" or len(words) != 3:
        example = "mqtool bench compare classic quorum"
        raise UsageError("bench takes no arguments, or 'compare' and two names", f"for example: {example}")
    given = {"--plot": report.plot, "--vary": runs.vary, "--at": runs.at, "--during": runs.during}
    if unfit := [option for option, value in given.items() if value is not None]:
        raise UsageError(f"compare does not take {unfit[0]}", "leave it out")
    sides = [_side(word, broker, plan) for word in words[1:]]
    found: list[list[dict[str, Any]]] = [[*side.results] for side in sides]
    live = [side for side in sides if side.access is not None]
    if len(live) == 1:
        raise UsageError("a file can only be compared with another file", "create one: mqtool bench --json > FILE")
    results = []
    for side in live:
        _ask(side.access, side.plan, yes=yes)  # type: ignore[arg-type]
    # Alternate the order, so that neither side always goes first: A, B, B, A, …
    turns = [(number // 2, (number + 1) // 2 % 2) for number in range(2 * runs.rounds if live else 0)]
    for number, index in stopping.until_requested(turns):
        side = live[index]
        label = f", {side.name}, round {number + 1} of {runs.rounds}"
        result = _run(_place(side.access, runs.stream_port), side.plan, label=label)  # type: ignore[arg-type]
        if not result.stopped:
            found[index].append(result.as_json())
            results.append(result)
    complete = min(map(len, found))
    pairs = [each[:complete] for each in found] if live else found
    names = (sides[0].name, sides[1].name)
    if not complete:
        output.warning("nothing to compare yet: each side needs at least one complete run")
    else:
        compared = comparison.compare(*pairs, paired=bool(live))
        bench_report.show_comparison(names, compared, pairs, as_json=report.as_json, as_csv=report.as_csv)
    if results:
        _check(results)
    stopping.exit_if_requested()


def _side(word: str, broker: ManagedBroker, plan: BenchPlan) -> Side:
    """Interpret an operand of `compare`: a queue type, a protocol, a file, a URL, or the name of a context."""
    if word in _QUEUE_TYPES:
        return Side(word, access_to(broker), plan.with_value("queue_type", word).checked())
    if word in PROTOCOLS:
        queue_type = STREAM if word == STREAM else plan.queue_type
        changed = plan.with_value("protocol", word).with_value("queue_type", queue_type)
        return Side(word, access_to(broker), changed.checked())
    if Path(word).is_file():
        return Side(Path(word).name, None, plan, _results_in(Path(word)))
    options, call = broker.options, broker.options.call
    is_url = "://" in word
    named = call._replace(typed=call.typed - {"url", "context"} | {"url" if is_url else "context"})
    url, context = (word, None) if is_url else (None, word)
    access = access_to(replace(broker, options=replace(options, url=url, context=context, call=named), management=None))
    return Side(access.context or str(access.address), access, plan)


def _results_in(path: Path) -> list[dict[str, Any]]:
    """Read the results from a file written by `bench --json`.

    Raises:
        BadData: the file cannot be read, is empty, or contains anything else.
    """
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        comparison.compare(found, found, paired=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} does not contain results of 'mqtool bench --json'") from error
    if not found:
        raise BadData(f"{path} is empty")
    return found


def _place(access: Access, stream_port: int | None) -> BenchPlace:
    """Return the broker's addresses and TLS files, and the functions with which a run connects to it."""

    def find_leader(stream: str) -> Address:
        with access.stream_channel(stream_port) as channel:
            return channel.sessions_for([stream], to_publish=True)[0].address

    return BenchPlace(access.addresses, access.tls, access.connect, access.management, find_leader)
