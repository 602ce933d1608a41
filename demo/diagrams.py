"""docs/tutorials.md: each tutorial's topology as a diagram, which GitHub draws, and its commands.

Rounded boxes are programs, hexagons are exchanges, cylinders are queues.
"""

from collections.abc import Mapping

from mqtool.tutorials import pages
from mqtool.tutorials.pages import Page

_PRIVATE = 'q1[("its own")]', 'q2[("its own")]'

#: Mermaid's lines. https://mermaid.js.org/syntax/flowchart.html
DIAGRAMS: Mapping[str, tuple[str, ...]] = {
    "hello-world": ('s(["send"]) --> q[("hello")] --> r(["receive"])',),
    "work-queues": ('b(["new-task"]) --> q[("task_queue")]', 'q --> w1(["worker 1"])', 'q --> w2(["worker 2"])'),
    "publish-subscribe": (
        'e(["emit-log"]) --> x{{"logs, fanout"}}',
        f'x --> {_PRIVATE[0]} --> r1(["disk"])',
        f'x --> {_PRIVATE[1]} --> r2(["screen"])',
    ),
    "routing": (
        'e(["emit-log"]) --> x{{"direct_logs, direct"}}',
        f'x -->|error| {_PRIVATE[0]} --> r1(["disk"])',
        f'x -->|"info, warning, error"| {_PRIVATE[1]} --> r2(["screen"])',
    ),
    "topics": (
        'e(["emit-log"]) --> x{{"topic_logs, topic"}}',
        f'x -->|"kern.*"| {_PRIVATE[0]} --> r1(["kernel"])',
        f'x -->|"kern.*, *.critical"| {_PRIVATE[1]} --> r2(["critical"])',
        'x -->|"#35;"| q3[("its own")] --> r3(["all"])',
    ),
    "headers": (
        'e(["emit-log"]) --> x{{"headers_logs, headers"}}',
        f'x -->|"all: format=pdf, type=report"| {_PRIVATE[0]} --> r1(["all"])',
        f'x -->|"any: format=pdf, type=log"| {_PRIVATE[1]} --> r2(["any"])',
    ),
    "rpc": (
        'c(["rpc-client"]) -->|"reply_to, correlation_id"| q[("rpc_queue")] --> s(["rpc-server"])',
        's -->|correlation_id| r[("its own")] --> c',
    ),
    "publisher-confirms": ('p(["publisher"]) -->|messages| q[("its own")]', "q -.->|confirms| p"),
    "delayed-messages": (
        's(["send-delayed"]) --> x{{"delay_exchange, x-delayed-message"}}',
        'x -->|"when it is due"| q[("delay_queue")] --> r(["receive-delayed"])',
    ),
    "stream-hello-world": (
        's(["send-stream"]) --> q[("hello-python-stream")]',
        'q -->|"from offset 0"| r1(["receive-stream"])',
        'q -->|"from offset 42"| r2(["receive-stream"])',
    ),
    "stream-offset-tracking": (
        's(["sender"]) --> q[("stream-offset-tracking-python")] --> r(["receiver"])',
        'r -.->|"subscriber_1: 42"| q',
    ),
}
LEGEND = "Rounded boxes are programs, hexagons exchanges, cylinders queues."
_HEAD = f"""\
# The tutorials

{LEGEND} (`make pictures` writes this page.)

```sh
mqtool tutorial list
mqtool tutorial run work-queues
mqtool tutorial show routing
mqtool tutorial show hello-world --plain > hello.py
```

`run` plays a tutorial in one terminal, step by step; with `--auto` it goes on by itself. `show` prints the picture, the
story, what to type and the source; with `--plain`, a script that does the same with a client library alone.

![mqtool tutorial show routing](pictures/tutorial-show.svg)
"""
_TAIL = """\
## Why queues?

`mqtool tutorial run why-queues` plays three motives for a queue, and measures them. Here a worker that cannot keep up
with a burst drains it at its own pace:

![Forty orders in a second, and a packer who can do five](pictures/why-queues.svg)

## Things to try

- `mqtool worker --prefetch 0` deals out tasks in turn, however long each takes.
- `mqtool worker --forget-ack` makes the classic mistake; `mqtool top` shows what comes of it.
- `mqtool receive-log fanout -q all` collects in a durable queue, also while no receiver runs. Without `-q`, a log
  receiver's queue is its own and is deleted with it.
- `--dialect go`, `python-classic`, `go-classic` and `go-article` use the names, settings and lines of the tutorials of
  other languages and years: [If you follow an older tutorial](how-to/older-tutorials.md).
"""


def document() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(pages.page(name)) for name in pages.NAMES), _TAIL])


def _section(page: Page) -> str:
    diagram = "\n".join(f"    {line}" for line in DIAGRAMS[page.name])
    script = f"mqtool/tutorials/plain_{page.library}/{page.name.replace('-', '_')}.py"
    width = max(len(command) for _, command in page.terminals)
    commands = "\n".join(f"{command.ljust(width)}   # {terminal}" for terminal, command in page.terminals)
    return (
        f"## {page.title}\n\n{page.summary[0].upper()}{page.summary[1:]} "
        f"[Source](../{page.file}), [plain {page.library}](../{script}), "
        f"[where it comes from]({page.link}).\n\n"
        f"```mermaid\nflowchart LR\n{diagram}\n```\n\n```sh\n{commands}\n```\n"
    )
