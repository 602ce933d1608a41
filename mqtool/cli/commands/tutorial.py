"""mqtool tutorial."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mqtool import plays
from mqtool.amqp import TlsFiles, parse_addresses
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.chosen_broker import leave_other_brokers
from mqtool.cli.command_line import NoColor, command
from mqtool.cli.commands import tutorial_list, tutorial_try
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, Effect
from mqtool.cli.display import layout, output, play_lines
from mqtool.cli.display.play_lines import PlayLines, TypingPace
from mqtool.cli.display.play_page import Again, Left, PlayPage, ShownBroker
from mqtool.cli.display.play_panes import SMALLEST, Panes
from mqtool.cli.invocation import current
from mqtool.cli.options.page_options import PageOptions
from mqtool.errors import Unavailable, UsageError
from mqtool.plays.goals import GOALS, repair_programs
from mqtool.plays.performing import new_prefix, perform, why_not
from mqtool.spelling import counted
from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Guard
from mqtool.tutorials import pages

#: The goals that are about programs to repair, and belong to no tutorial.
_REPAIR = "repair"


app = tutorial_list.part
app.add_typer(tutorial_try.part)


@command(
    app,
    "mqtool tutorial show routing",
    "mqtool tutorial show hello-world --plain > hello.py",
    "mqtool tutorial show repair --copy-to programs",
    effect=Effect.NONE,
)
def show(
    name: Annotated[
        str, typer.Argument(help="Name of the tutorial", autocompletion=lambda: [*pages.NAMES, _REPAIR], metavar="NAME")
    ],
    plain: Annotated[
        bool, typer.Option("--plain", "--plain-pika", help="Print a script that does the same without mqtool")
    ] = False,
    copy_to: Annotated[
        Path | None,
        typer.Option("--copy-to", help="Copy the programs of tutorial repair to DIRECTORY", metavar="DIRECTORY"),
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Show a tutorial: its picture, story, commands and source."""
    current().no_color = no_color
    if name == _REPAIR:
        _show_repair(copy_to)
        return
    if copy_to is not None:
        raise UsageError("--copy-to is for the programs of repair", "--plain prints a tutorial's script")
    name = pages.numbered(name)
    if name in plays.PLAYS and name not in pages.NAMES:
        raise UsageError(f"{name} has no page to read", f"run it: mqtool tutorial run {name}")
    page = pages.page(name)
    if plain:
        play_lines.show_source(page.plain)
    else:
        play_lines.show_page(page)
        screen = layout.terminal()
        if screen.is_terminal and not screen.is_dumb_terminal and page.source.count("\n") >= screen.height // 2:
            output.status(f"To read it page by page: mqtool tutorial show {name} | less")


def _show_repair(copy_to: Path | None) -> None:
    """Print which programs there are to repair, or copy them to a directory."""
    if copy_to is None:
        rows = [{"program": name, "summary": summary} for name, summary in repair_programs.summaries().items()]
        layout.show_rows(rows, ("program", "summary"), narrower=[("program",)], prose="summary")
        output.status(f"To get them: mqtool tutorial show {_REPAIR} --copy-to DIRECTORY")
        return
    new, kept = repair_programs.copy_to(copy_to)
    for path in new:
        output.show(str(path))
    if kept:
        output.notice(f"not replaced, because they were there already: {', '.join(map(str, kept))}")
    output.status(f"To run one, with a Python that has pika: {sys.executable} {(new or kept)[0]}")


@command(
    app,
    "mqtool tutorial run hello-world",
    "mqtool tutorial run --ui --open",
    "mqtool tutorial run why-queues --auto",
    effect=Effect.OWN,
)
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Tutorials (default: all)", autocompletion=lambda: [*plays.PLAYS]),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Continue at reading pace, without waiting for Enter")] = False,
    no_pause: Annotated[
        bool, typer.Option("--no-pause", help="Do not pause; only check that everything works")
    ] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Print line by line, without panes")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            "-u",
            envvar=["MQTOOL_URL", "AMQP_URL"],
            help="Run on this broker, and clean up afterwards",
            metavar="URL",
        ),
    ] = None,
    no_color: NoColor = False,
    *,
    page: PageOptions,
) -> None:
    """Run tutorials step by step, in several terminals at once.

    With --ui, a page in the browser shows the terminals and, above them, the messages as they move. If you also leave
    out NAME, you choose a tutorial on the page.
    """
    current().no_color = no_color
    chosen = [*map(pages.numbered, names or plays.PLAYS)]
    for name in chosen:
        if name not in plays.PLAYS:
            raise pages.no_such_tutorial(name, tuple(plays.PLAYS))
    leave_other_brokers(url)
    stopping.let_children_be_interrupted()
    guard = Guard()
    if page.ui:
        if no_pause or lines:
            raise UsageError(
                "--ui cannot be combined with --no-pause or --lines", "use --auto to continue without pressing Enter"
            )
        possible, skipped = _possible(chosen, url) if names else ([], "")
        if skipped:
            output.notice(skipped)
        _run_in_page(possible, guard, url, page, auto=auto)
        return
    audience = _audience(TypingPace(auto=auto or no_pause, watched=False if no_pause else None), lines=lines)
    _run_in_terminal(*_possible(chosen, url), audience, guard, url, no_pause=no_pause)


def _run_in_terminal(
    chosen: list[str], skipped: str, audience: PlayLines | Panes, guard: Guard, url: str | None, *, no_pause: bool
) -> None:
    """Play these tutorials, and say which were skipped."""
    started, checks = time.monotonic(), 0
    for number, name in enumerate(chosen, 1):
        play = plays.PLAYS[name]
        try:
            with audience.watching(play.title, play.story, (number, len(chosen))):
                checks += perform(play, audience, guard, url)
        except KeyboardInterrupt:
            output.notice("interrupted; everything it started has been stopped")
            raise
        if not no_pause:
            audience.ended(_next_steps(name, is_last=number == len(chosen)))
    if no_pause:
        audience.ended(
            f"{counted(len(chosen), 'tutorial')}, {counted(checks, 'check')} passed, {time.monotonic() - started:.0f} s"
        )
    if skipped:
        output.notice(skipped)


def _possible(names: list[str], url: str | None) -> tuple[list[str], str]:
    """Return the tutorials that can run on the broker at a URL, and a sentence about the others, if any.

    Raises:
        Unavailable: none of the tutorials can run.
    """
    reasons: dict[str, Unavailable | None] = {}  # by protocol, of which the reason depends
    for name in names:
        play = plays.PLAYS[name]
        if play.protocol not in reasons:
            reasons[play.protocol] = why_not(play, url)
    left = [name for name in names if reasons[plays.PLAYS[name].protocol] is None]
    for reason in filter(None, reasons.values()):
        if not left:
            raise Unavailable(str(reason), "without --url and MQTOOL_URL, the tutorial starts a broker for itself")
        skipped = [name for name in names if name not in left]
        return left, f"skipped {', '.join(skipped)}: {reason}"
    return left, ""


def _run_in_page(names: list[str], guard: Guard, url: str | None, page: PageOptions, *, auto: bool) -> None:
    """Play these tutorials on a page in the browser, then those that the reader chooses there."""
    offered = [{"name": name, "title": play.title, "story": play.story} for name, play in plays.PLAYS.items()]
    with PlayPage(offered, auto=auto, broker=page_broker(url), port=page.port, open_page=page.open_page) as shown:
        following = iter(names)
        wanted = next(following, None) or shown.choice("hello-world")
        while wanted is not None:
            name, play = wanted, plays.PLAYS[wanted]
            asked = next(following, None)
            later = [*plays.PLAYS, None]
            proposed = asked or later[later.index(name) + 1]
            choose = partial(shown.choice, proposed, starts=asked is not None)
            chosen: list[str | None] = []
            try:
                prefix = new_prefix()
                own = [[prefix + each for each in names] for names in (play.exchanges, play.queues)]
                with shown.watching(play.title, play.story, name, *own):
                    whole = play if url else replace(play, play=partial(_to_its_end, play, shown, choose, chosen))
                    checks = _performed(whole, shown, guard, url, prefix)
            except Left:
                pass
            except KeyboardInterrupt:
                output.notice("interrupted; everything it started has been stopped")
                raise
            else:
                if not chosen:
                    shown.ended(_passed(play, checks))
            wanted = chosen[0] if chosen else choose()


def _to_its_end(
    play: Play, shown: PlayPage, choose: Callable[[], str | None], chosen: list[str | None], stage: Stage
) -> None:
    """Perform a play, and leave its broker to the reader until they choose what comes next."""
    play.play(stage)
    shown.ended(_passed(play, stage.checks))
    chosen.append(choose())


def _passed(play: Play, checks: int) -> str:
    return f"That was {play.title}: {counted(checks, 'check')} passed."


def _performed(play: Play, shown: PlayPage, guard: Guard, url: str | None, prefix: str) -> int:
    """Perform a play; again, up to the same scene, whenever its reader has changed something on its broker."""
    while True:
        try:
            return perform(play, shown, guard, url, prefix=prefix)
        except Again:
            continue


def page_broker(url: str | None) -> ShownBroker | None:
    """Return the broker at a URL, in the form that PlayPage expects."""
    if url is None:
        return None
    access = Access(parse_addresses(url), TlsFiles(), os.environ.get(MANAGEMENT_VARIABLE))
    return ShownBroker(access.management, access.vhost, access.title, access.connect)


def _next_steps(name: str, *, is_last: bool) -> str:
    steps = [f"'mqtool tutorial show {name}' has the commands, the story and the source."] * (name in pages.NAMES)
    steps += [f"Now do it yourself: mqtool tutorial try {name}"] * (name in GOALS)
    following = [*plays.PLAYS][[*plays.PLAYS].index(name) + 1 :]
    if is_last and following:
        steps.append(f"next: mqtool tutorial run {following[0]}")
    return "\n".join(steps)


def _audience(pace: TypingPace, *, lines: bool) -> PlayLines | Panes:
    screen = layout.terminal()
    wide_enough = screen.width >= SMALLEST.width and screen.height >= SMALLEST.height
    if lines or not wide_enough or not screen.is_terminal or screen.is_dumb_terminal:
        return PlayLines(pace)
    return Panes(pace)
