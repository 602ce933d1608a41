"""mqtool tutorial try."""

import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from mqtool import plays
from mqtool.address import in_virtual_host
from mqtool.amqp import TlsFiles, parse_addresses
from mqtool.broker import background, ports, tutorial_broker
from mqtool.broker.tutorial_broker import AnnouncedBroker
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.chosen_broker import choose, is_same_node, leave_other_brokers
from mqtool.cli.command_line import NoColor, command
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.goal_lines import GoalLines
from mqtool.cli.display.play_page import PlayPage, ShownBroker
from mqtool.cli.invocation import current
from mqtool.cli.options.page_options import PageOptions
from mqtool.errors import UsageError
from mqtool.plays.goals import GOALS, REPAIR, reached_goals
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.trying import Trial, TrialBroker, is_embedded, own_vhost, why_not
from mqtool.plays.performing import api_of, embedded_broker
from mqtool.spelling import counted, did_you_mean
from mqtool.stage.terminal import Guard
from mqtool.tutorials import pages

part = typer.Typer()

_HINT_KEYS, _AGAIN, _SKIP, _QUIT = ("\r", "\n", "h"), "r", "s", "q"
_REACHED = "reached"
#: The goals that are about programs to repair, and belong to no tutorial.
_REPAIR = "repair"


@command(
    part,
    "mqtool tutorial try",
    "mqtool tutorial try hello-world",
    "mqtool tutorial try routing --again",
    effect=Effect.OWN,
    name="try",
)
def try_(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tutorial to try", autocompletion=lambda: [*GOALS])
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Start again with the first goal")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            "-u",
            envvar=["MQTOOL_URL", "AMQP_URL"],
            help="Use this broker, in a new virtual host",
            metavar="URL",
        ),
    ] = None,
    no_color: NoColor = False,
    *,
    page: PageOptions,
) -> None:
    """Try a tutorial yourself; mqtool checks which goals you reach.

    Work towards the goals in other terminals, with any program you like. Without NAME, lists the goals, and shows which
    ones you have reached.
    """
    current().no_color = no_color
    if name is None:
        _list()
        return
    tutorial = pages.numbered(name)
    if tutorial not in GOALS:
        raise UsageError(
            f"there are no goals for {tutorial!r}",
            did_you_mean(tutorial, tuple(GOALS), f"tutorials with goals: {', '.join(GOALS)}"),
        )
    done = reached_goals.load().get(tutorial, [])
    left = [each for each in GOALS[tutorial] if again or each.name not in done]
    if not left:
        output.status(
            f"You have reached all goals of {tutorial}. 'mqtool tutorial try {tutorial} --again' starts again."
        )
        return
    leave_other_brokers(url)
    stopping.let_children_be_interrupted()
    guard = Guard()
    with ExitStack() as ending:
        place = ending.enter_context(_own_broker(guard) if url is None else _vhost_at(url))
        shown = None
        if page.ui:
            broker = ShownBroker(place.broker.find, place.broker.vhost, place.title)
            shown = ending.enter_context(PlayPage([], broker=broker, port=page.port, open_page=page.open_page))
        try:
            is_over = _try(tutorial, left, place, shown)
        except KeyboardInterrupt:
            is_over = False
        if not is_over:
            output.notice(f"Stopped. {_counted(tutorial)} To continue: mqtool tutorial try {tutorial}")
        if place.first:
            when = "Type now" if is_over else "If you do not continue, type"
            output.notice(f"{when} in each of your other terminals: unset AMQP_URL")


class _Place(NamedTuple):
    """Where the learner works.

    Attributes:
        first: what to type in each terminal first; "" if mqtool finds the broker without it.
        address: the broker's URL, for a learner who need not type anything.
        end: what happens to the broker after the last goal, as a clause.
    """

    broker: TrialBroker
    first: str
    address: str
    title: str
    end: str


def _list() -> None:
    """List the goals: a line for each tutorial on a terminal, otherwise a line for each goal."""
    done = reached_goals.load()
    if output.is_terminal(1):
        for_people = [
            {
                "tutorial": tutorial,
                "reached": f"{sum(goal.name in done.get(tutorial, ()) for goal in goals)} of {len(goals)}",
                "goals": ", ".join("✓ " * (goal.name in done.get(tutorial, ())) + goal.name for goal in goals),
            }
            for tutorial, goals in GOALS.items()
        ]
        columns = ("tutorial", "reached", "goals")
        layout.show_rows(for_people, columns, narrower=[columns[:2], columns[:1]], prose="goals")
        left = _first_left([*GOALS])
        how = "To continue:" if any(done.values()) else "To begin:"
        output.status(f"{how} mqtool tutorial try {left}" if left else "You have reached all of them.")
        return
    rows = [
        {"tutorial": tutorial, "goal": goal.name, "reached": "✓" if goal.name in done.get(tutorial, ()) else ""}
        for tutorial, goals in GOALS.items()
        for goal in goals
    ]
    layout.show_rows(rows, ("tutorial", "goal", "reached"))


def _first_left(tutorials: list[str]) -> str | None:
    """Return the first of these tutorials that has goals which were not reached; None if there is none."""
    done = reached_goals.load()
    return next((each for each in tutorials if any(goal.name not in done.get(each, ()) for goal in GOALS[each])), None)


def _counted(tutorial: str) -> str:
    """Say how many of a tutorial's goals were reached, in this run or before."""
    done = reached_goals.load().get(tutorial, [])
    return f"{sum(each.name in done for each in GOALS[tutorial])} of {counted(len(GOALS[tutorial]), 'goal')} reached."


def _try(tutorial: str, left: list[Goal], place: _Place, page: PlayPage | None) -> bool:
    """Let the learner try goals, one after the other; return False if they quit."""
    lines, goals = GoalLines(page), GOALS[tutorial]
    title, story = (play.title, play.story) if (play := plays.PLAYS.get(tutorial)) else REPAIR
    with (
        lines.watching(title, story),
        page.watching(title, story) if page else nullcontext(),
        page.on_broker(None) if page else nullcontext(),
        Trial(place.broker) as trial,
    ):
        if place.first:
            lines.note(f"In each of your other terminals, type first:\n  {place.first}")
            lines.note("A program of your own has to connect to that URL as well: in Python, os.environ['AMQP_URL'].")
        else:
            lines.note(
                f"The broker is at {place.address}. mqtool's commands in other terminals find it; a program of "
                f"your own has to connect to that URL. In a terminal where MQTOOL_URL or AMQP_URL is set, type first:\n"
                "  unset MQTOOL_URL AMQP_URL"
            )
        if tutorial == _REPAIR:
            lines.note(
                f"To get the programs, and to run one with a Python that has pika:\n"
                f"  mqtool tutorial show {_REPAIR} --copy-to programs\n  {sys.executable} programs/{left[0].program}"
            )
        is_tried = False
        for goal in left:
            if why := why_not(goal, place.broker):
                lines.note(f"Not on this broker: {goal.ask} ({why}.)")
                continue
            is_tried = True
            trial.prepare(goal)  # before it is printed: from then on, the learner may do something
            lines.begin(goal, goals.index(goal) + 1, len(goals))
            outcome = _outcome(goal, trial, lines)
            if outcome == _QUIT:
                return False
            if outcome == _REACHED:
                reached_goals.add(tutorial, goal)
        lines.note(f"{_counted(tutorial)} {_next(tutorial)}")
        if is_tried:
            lines.end(place.end)
    return True


def _outcome(goal: Goal, trial: Trial, lines: GoalLines) -> str:
    """Let the learner try one goal, which is prepared; return _REACHED, or the key that skips it or quits."""
    hints = 0
    while True:
        for finding in trial.findings(goal):
            if finding is not None:
                lines.found(finding)
            key = lines.key()
            if key and key in _HINT_KEYS:
                lines.hint(goal, min(hints, len(goal.hints) - 1))
                hints += 1
            elif key in (_SKIP, _QUIT):
                return key
            elif key == _AGAIN:
                break
        else:
            return _REACHED
        deleted = trial.prepare_again(goal)
        made = f" Deleted: {', '.join(map(repr, deleted))}." if deleted else ""
        lines.note(f"This goal begins again.{made}")


def _next(tutorial: str) -> str:
    done = reached_goals.load().get(tutorial, [])
    if any(each.name not in done for each in GOALS[tutorial]):
        return f"To try the others: mqtool tutorial try {tutorial}"
    names = [*GOALS]
    at = names.index(tutorial) + 1
    left = _first_left(names[at:] + names[:at])
    return f"Next: mqtool tutorial try {left}" if left else "You have reached the goals of all tutorials."


@contextmanager
def _own_broker(guard: Guard) -> Iterator[_Place]:
    """Context manager: run an embedded broker, on the ports of the last one or the usual ones if they are free."""
    last = tutorial_broker.last()
    port = ports.choose(None, [*([last.port] if last else []), ports.AMQP])
    is_same = last is not None and last.port == port  # else the management API is at the usual distance
    usual = [last.management_port] if last and is_same else ports.usual_management(None, port)
    management_port = ports.choose(None, usual)
    stream_port = ports.choose(None, [*([last.stream_port] if last else []), ports.STREAMS])
    shown = f"amqp://{ports.HOST}:{port}"
    own = background.started(os.getpid())
    known = AnnouncedBroker(port, management_port, stream_port, _way(shown), own.pid, own.born)
    with (
        tempfile.TemporaryDirectory(prefix="mqtool-try-") as scratch,
        embedded_broker(Path(scratch) / "broker", guard, stream_port, port=port, management_port=management_port) as (
            url,
            management,
        ),
        tutorial_broker.announced(known),
    ):
        access = Access(parse_addresses(url), TlsFiles(), management)
        found = choose().addresses()[0]
        is_found = is_same_node(found, access.address) and found.virtual_host == "/"
        first = "" if is_found else _way(shown)
        broker = TrialBroker(api_of(management), "/", access.connect, is_embedded=True, way=first)
        yield _Place(broker, first, shown, "a broker started by mqtool", "the broker stops")


@contextmanager
def _vhost_at(url: str) -> Iterator[_Place]:
    """Context manager: add a virtual host to a broker."""
    addresses, name = parse_addresses(url), f"mqtool-try-{secrets.token_hex(3)}"
    given = Access(addresses, TlsFiles(), os.environ.get(MANAGEMENT_VARIABLE))
    api = given.management()
    access = Access([each._replace(virtual_host=name) for each in addresses], TlsFiles())
    shown = in_virtual_host(url, name)
    with own_vhost(api, name, access.user):
        first = _way(shown)
        broker = TrialBroker(given.management, name, access.connect, is_embedded(api), way=first)
        yield _Place(broker, first, shown, access.title, f"the virtual host {name!r} is deleted")


def _way(url: str) -> str:
    """Return the command that leads a terminal to a broker. MQTOOL_URL would take precedence over AMQP_URL."""
    return f"unset MQTOOL_URL; export AMQP_URL={shlex.quote(url)}"
