"""mqtool tutorial list, show, run."""

import json
import time
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from mqtool.cli import contexts, stopping
from mqtool.cli.display import output
from mqtool.errors import UsageError
from mqtool.inspection.listing import counted
from mqtool.tutorials import pages

if TYPE_CHECKING:
    from mqtool.cli.display.pace import Pace
    from mqtool.cli.display.play_lines import Lines
    from mqtool.cli.display.play_panes import Panes

from mqtool.cli.groups import Commands

app = Commands()
tutorial = app.group("tutorial", "Learn RabbitMQ: read the tutorials, and see them run.")


def _pages(incomplete: str) -> list[str]:
    return [name for name in pages.NAMES if name.startswith(incomplete)]


def _plays(incomplete: str) -> list[str]:
    from mqtool import plays

    return [name for name in plays.ALL if name.startswith(incomplete)]


NoColor = Annotated[bool, Option("--no-color", help="Do not use colour")]


@tutorial.command("mqtool tutorial list", "mqtool tutorial list --json", name="list")
def list_(as_json: Annotated[bool, Option("--json", help="Print NDJSON")] = False, no_color: NoColor = False) -> None:
    """List the tutorials, in the order to learn them."""
    from mqtool import plays

    said = [_said_of(name) for name in plays.ALL]
    if as_json:
        for name, title, summary in said:
            output.show(json.dumps({"name": name, "title": title, "summary": summary}, ensure_ascii=False))
        return
    from mqtool.cli.display import tutorial_page

    tutorial_page.show_list([(name, summary) for name, _, summary in said], no_color=no_color)


def _said_of(name: str) -> tuple[str, str, str]:
    """Name, title, and half a sentence."""
    from mqtool import plays

    if name in pages.NAMES:
        page = pages.page(name)
        return name, page.title, page.summary
    play = plays.load(name)
    return name, play.title, play.story[0].lower() + play.story[1:]


@tutorial.command("mqtool tutorial show routing", "mqtool tutorial show hello-world --plain > hello.py")
def show(
    name: Annotated[str, Argument(help="Name of the tutorial", autocompletion=_pages)],
    plain: Annotated[
        bool, Option("--plain", "--plain-pika", help="Print a script that does the same without mqtool")
    ] = False,
    no_color: NoColor = False,
) -> None:
    """Show a tutorial: picture, story, commands and source."""
    from mqtool import plays
    from mqtool.cli.display import tutorial_page

    if name in plays.ALL and name not in pages.NAMES:
        raise UsageError(f"{name} has no page to read", f"run it: mqtool tutorial run {name}")
    page = pages.page(name)
    if plain:
        tutorial_page.show_source(page.plain, no_color=no_color)
    else:
        tutorial_page.show_page(page, no_color=no_color)


@tutorial.command("mqtool tutorial run hello-world", "mqtool tutorial run why-queues --auto")
def run(
    names: Annotated[
        list[str] | None, Argument(metavar="[NAME]...", help="Tutorials to run", autocompletion=_plays)
    ] = None,
    auto: Annotated[bool, Option(help="Go on by itself, at reading pace")] = False,
    no_pause: Annotated[bool, Option(help="Do not pause at all: a check rather than a lesson")] = False,
    lines: Annotated[bool, Option(help="Print line by line, without panes")] = False,
    url: Annotated[
        str | None, Option("-u", envvar=["MQTOOL_URL", "AMQP_URL"], help="Run on this broker, and leave nothing behind")
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Run tutorials step by step, in several terminals at once."""
    from mqtool import plays
    from mqtool.stage.guard import Guard

    contexts.not_for("tutorial run")
    chosen = names or list(plays.ALL)
    for name in chosen:
        if name not in plays.ALL:
            raise pages.no_such_tutorial(name, plays.ALL)
    stopping.let_children_be_interrupted()
    guard = Guard()
    from mqtool.cli.display.pace import Pace
    from mqtool.plays.playing import perform

    audience = _audience(
        Pace(auto=auto or no_pause, watched=False if no_pause else None), lines=lines, no_color=no_color
    )
    started, checks = time.monotonic(), 0
    for number, name in enumerate(chosen, 1):
        play = plays.load(name)
        try:
            with audience.watching(play.title, play.story, (number, len(chosen))):
                checks += perform(play, audience, guard, url)
        except KeyboardInterrupt:
            output.notice("interrupted; everything it started has been stopped")
            raise
        if not no_pause:
            audience.ended(
                "'mqtool tutorial list' lists the tutorials."
                if name not in pages.NAMES
                else f"'mqtool tutorial show {name}' has the commands, the story and the source."
            )
    if no_pause:
        audience.ended(
            f"{counted(len(chosen), 'tutorial')}, {counted(checks, 'check')} passed, {time.monotonic() - started:.0f} s"
        )


def _audience(pace: "Pace", *, lines: bool, no_color: bool) -> "Lines | Panes":
    from mqtool.cli.display.play_lines import Lines
    from mqtool.cli.display.play_panes import SMALLEST, Panes
    from mqtool.cli.display.screen import console

    screen = console(no_color=no_color)
    wide_enough = screen.width >= SMALLEST.width and screen.height >= SMALLEST.height
    if lines or not wide_enough or not screen.is_terminal or screen.is_dumb_terminal:
        return Lines(pace, no_color=no_color)
    return Panes(pace, no_color=no_color)
