"""How a tutorial's page looks: on a terminal with colours, in a pipe as plain text."""

from typing import TYPE_CHECKING

from mqtool.cli.display import output
from mqtool.cli.display.tables import terminal
from mqtool.tutorials.pages import Page

if TYPE_CHECKING:
    from rich.text import Text

#: The longest line that is still good to read.
_WIDTH = 100


def show_page(page: Page) -> None:
    """Picture, story, commands, source."""
    if not output.is_terminal(1):
        output.show(_as_text(page))
        return
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.text import Text

    screen = terminal()
    screen.width = min(screen.width, _WIDTH)
    screen.print(Rule(Text(page.title, "bold"), align="left", style="dim"))
    screen.print(Text(page.summary[0].upper() + page.summary[1:] + "\n"))
    screen.print(Text(page.picture + "\n", "cyan"), no_wrap=True, crop=True)
    for paragraph in page.story:
        screen.print(Text(paragraph + "\n"))
    screen.print(Rule(Text("Type this", "bold"), align="left", style="dim"))
    width = max(len(name) for name, _ in page.terminals)
    for name, command in page.terminals:
        line = Text.assemble((name.ljust(width), "cyan"), "   ", (f"$ {command}", "bold"))
        screen.print(Padding(line, (0, 0, 0, 4)))
    screen.print(Padding(Text(f"\n{_more(page)}", "dim"), (0, 0, 1, 4)))
    screen.print(Rule(Text(page.file, "bold"), align="left", style="dim"))
    screen.print(_highlighted(page.source), soft_wrap=True)
    screen.print(Text(f"\n{page.link}", "dim"))


def show_source(source: str) -> None:
    """A program, to be read or to be redirected into a file."""
    if not output.is_terminal(1):
        output.write(source.encode())
        return
    # No line is broken by us: what is copied from the screen must run.
    terminal().print(_highlighted(source), soft_wrap=True, end="")


def _highlighted(source: str) -> "Text":
    from pygments.token import Comment, Keyword, Name, Number, String
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme, Syntax

    # Of the terminal's own colours, those that can be read on black and on white.
    theme = ANSISyntaxTheme(
        {
            Comment: Style(dim=True),
            Keyword: Style(color="magenta"),
            Name.Class: Style(color="cyan", bold=True),
            Name.Function: Style(color="cyan", bold=True),
            Number: Style(color="cyan"),
            String: Style(color="green"),
        }
    )
    return Syntax(source, "python", theme=theme, background_color="default").highlight(source)


def _more(page: Page) -> str:
    return (
        f"A terminal for each; 'mqtool broker up' starts a broker. 'mqtool tutorial run {page.name}' plays it here, "
        f"and --plain prints a script that does the same with {page.library} alone, on the broker that AMQP_URL names."
    )


def _as_text(page: Page) -> str:
    width = max(len(name) for name, _ in page.terminals)
    commands = "\n".join(f"    {name.ljust(width)}   $ {command}" for name, command in page.terminals)
    parts = [f"{page.title}: {page.summary}", page.picture, *page.story, commands, f"# {page.file}", page.source]
    return "\n\n".join([*parts, page.link])
