"""Options for showing a play or drill in the terminal or in the browser."""

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(kw_only=True, eq=False, repr=False)
class PageOptions:
    """Options for showing a play or drill in the browser."""

    ui: Annotated[
        bool, typer.Option("--ui", help="Show what happens on a page in the browser", rich_help_panel="Page")
    ] = False
    open_page: Annotated[
        bool, typer.Option("--open", help="With --ui: open the page in a browser", rich_help_panel="Page")
    ] = False
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="With --ui: port to listen on; 0 for any free one",
            rich_help_panel="Page",
            metavar="N",
        ),
    ] = 0
