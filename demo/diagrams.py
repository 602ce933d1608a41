"""Write docs/tutorials.md: each tutorial's topology as a Mermaid diagram, and its commands."""

from collections.abc import Mapping

from mqtool.tutorials import pages
from mqtool.tutorials.pages import Page

_PRIVATE = 'q1[("amq.gen-1")]', 'q2[("amq.gen-2")]'
#: Over AMQP 1.0, the client names the queue.
_OWN = 'q1[("mqtool.gen-1")]', 'q2[("mqtool.gen-2")]'

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
        'x -->|"#35;"| q3[("amq.gen-3")] --> r3(["all"])',
    ),
    "headers": (
        'e(["emit-log"]) --> x{{"headers_logs, headers"}}',
        f'x -->|"all: format=pdf, type=report"| {_PRIVATE[0]} --> r1(["all"])',
        f'x -->|"any: format=pdf, type=log"| {_PRIVATE[1]} --> r2(["any"])',
    ),
    "rpc": (
        'c(["rpc-client"]) -->|"reply_to, correlation_id"| q[("rpc_queue")] --> s(["rpc-server"])',
        's -->|correlation_id| r[("amq.gen-1")] --> c',
    ),
    "publisher-confirms": ('p(["publisher"]) -->|messages| q[("amq.gen-1")]', "q -.->|confirms| p"),
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
    "amqp10-hello-world": (
        's(["send"]) -->|"/queues/hello"| q[("hello")] -->|"/queues/hello"| r(["receive"])',
        "q -.->|accepted| s",
        "r -.->|accepted| q",
    ),
    "amqp10-work-queues": (
        'b(["new-task"]) -->|"/queues/task_queue"| q[("task_queue")]',
        'q -->|"credit 1"| w1(["worker 1"])',
        'q -->|"credit 1"| w2(["worker 2"])',
    ),
    "amqp10-publish-subscribe": (
        'e(["emit-log"]) -->|"/exchanges/logs"| x{{"logs, fanout"}}',
        f'x --> {_OWN[0]} --> r1(["disk"])',
        f'x --> {_OWN[1]} --> r2(["screen"])',
    ),
    "amqp10-routing": (
        'e(["emit-log"]) -->|"/exchanges/direct_logs/error"| x{{"direct_logs, direct"}}',
        f'x -->|error| {_OWN[0]} --> r1(["disk"])',
        f'x -->|"info, warning, error"| {_OWN[1]} --> r2(["screen"])',
    ),
    "amqp10-topics": (
        'e(["emit-log"]) -->|"/exchanges/topic_logs/kern.critical"| x{{"topic_logs, topic"}}',
        f'x -->|"kern.*"| {_OWN[0]} --> r1(["kernel"])',
        f'x -->|"kern.*, *.critical"| {_OWN[1]} --> r2(["critical"])',
        'x -->|"#35;"| q3[("mqtool.gen-3")] --> r3(["all"])',
    ),
    "amqp10-rpc": (
        'c(["rpc-client"]) -->|"/queues/rpc_queue"| q[("rpc_queue")] --> s(["rpc-server"])',
        's -->|"/queues/mqtool.gen-1"| r[("mqtool.gen-1")] --> c',
    ),
}
LEGEND = "rounded boxes are programs, hexagons are exchanges, and cylinders are queues."
#: The first words of commands that run until Ctrl-C.
_WAITING = ("receive", "worker", "rpc-server")
_HEAD = f"""\
# The tutorials

mqtool has commands for each of RabbitMQ's tutorials. If no broker is running, start one:

```bash
mqtool broker up
```

Then run the commands of a tutorial, each in its own terminal.

You can also watch a tutorial in one terminal, on a temporary broker. `tutorial run` explains each step and waits for
Enter; with `--auto`, it does not wait.

```bash
mqtool tutorial run work-queues
mqtool tutorial run work-queues --ui
```

With `--ui`, the tutorial plays [in your browser](how-to/browser.md#play-a-tutorial-or-a-drill), with a picture of the
messages as they move. The link "Watch it", below each tutorial's title, opens [a recording of all
tutorials](pictures/tutorials.html). The recording is a single file, which any browser can play without mqtool and
without a network connection. The documentation site contains it; in a checkout, run `make docs` to create it.

`tutorial show` prints the diagram, the explanation, the commands and the source of a tutorial. With `--plain`,
`tutorial show` prints a script that does the same with a client library instead of mqtool.

```sh
mqtool tutorial list
mqtool tutorial show routing
mqtool tutorial show hello-world --plain > hello.py
```

![mqtool tutorial show routing](pictures/tutorial-show.svg)

If you follow the tutorials in a language other than Python, or an older version of them, read [If you follow another
tutorial](how-to/older-tutorials.md).

In the diagrams, {LEGEND}
"""
_OVER_AMQP10 = """\
## Over AMQP 1.0

Tutorials 1 to 6 also exist for AMQP 1.0, which RabbitMQ 4 supports. Use the same commands with `--protocol amqp1.0`, or
set the protocol in each terminal:

```sh
export MQTOOL_PROTOCOL=amqp1.0
```

In AMQP 1.0, messages flow over links between programs and addresses. The diagrams show the addresses. The page
[AMQP 1.0](how-to/amqp10.md) compares AMQP 1.0 with AMQP 0-9-1.
"""
_TAIL = """\
## Why queues?

`mqtool tutorial run why-queues` shows three reasons to use a queue, with measurements. In this picture, each order goes
to two queues, one for stock and one for e-mail:

[![Orders on their way to two queues and their consumers](pictures/why-queues.svg)](pictures/tutorials.html#why-queues)

## Things to try

- With `mqtool worker --prefetch 0`, two workers get tasks in turn, even while one of them is still busy.
- `mqtool worker --forget-ack` shows what happens if a worker does not acknowledge its messages; `mqtool top` shows the
  number of unacknowledged messages.
- `mqtool receive-log fanout -q all --declare` receives from a durable queue, which also collects messages while no
  receiver is running. Without `-q`, the receiver's queue is deleted when the receiver ends.
"""


def document() -> str:
    """Return the text of docs/tutorials.md, with the diagrams of all tutorials."""
    first = [name for name in pages.NAMES if not name.startswith(pages.AMQP10)]
    over_amqp10 = [name for name in pages.NAMES if name.startswith(pages.AMQP10)]
    return "\n".join([_HEAD, *map(_section, first), _OVER_AMQP10, *map(_section_over_amqp10, over_amqp10), _TAIL])


def _section_over_amqp10(name: str) -> str:
    """Return the section of docs/tutorials.md that shows a tutorial over AMQP 1.0. The section contains no commands,
    because they are the same as over AMQP 0-9-1.
    """
    page = pages.page(name)
    return f"### {page.title.partition(',')[0]}\n\n{_introduction(page)}"


def _section(name: str) -> str:
    """Return the section of docs/tutorials.md that shows one tutorial, with the command to run in each terminal."""
    page = pages.page(name)
    blocks = "\n\n".join(_terminal(number, *terminal) for number, terminal in enumerate(page.terminals, 1))
    return f"## {page.title}\n\n{_introduction(page)}\n{blocks}\n"


def _introduction(page: Page) -> str:
    """Return the first part of a tutorial's section: a sentence that says what the tutorial shows, then links, then the
    diagram.
    """
    diagram = "\n".join(f"    {line}" for line in DIAGRAMS[page.name])
    return (
        f"{page.summary[0].upper()}{page.summary[1:]} "
        f"[Source](../{page.file}), [the same with {page.library} alone](../mqtool/tutorials/{page.script}), "
        f"[official tutorial]({page.link}).\n\n"
        # The site embeds the recording, because the link is on a line of its own.
        f"[Watch it](pictures/tutorials.html#{page.name})\n\n"
        f"```mermaid\nflowchart LR\n{diagram}\n```\n"
    )


def _terminal(number: int, name: str, command: str) -> str:
    waits = "; press Ctrl-C to stop it" if command.removeprefix("mqtool ").startswith(_WAITING) else ""
    return f"Run this in terminal {number} ({name}){waits}:\n\n```sh\n{command}\n```"
