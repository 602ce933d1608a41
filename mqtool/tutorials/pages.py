"""The page of each tutorial: its diagram, explanation, commands and source.

The diagram and the explanation come from the docstring of the tutorial's module.
"""

import ast
from dataclasses import dataclass
from importlib import resources

from mqtool.errors import UsageError
from mqtool.spelling import did_you_mean, nearest
from mqtool.tutorials.dialects import OVER_AMQP10

#: The terminals of each tutorial and the commands to type in them; the tutorials are in the recommended order.
_TERMINALS = {
    "hello-world": (("receiver", "mqtool receive"), ("sender", "mqtool send")),
    "work-queues": (
        ("worker 1", "mqtool worker"),
        ("worker 2", "mqtool worker"),
        ("boss", "mqtool new-task 'A long task...'"),
    ),
    "publish-subscribe": (
        ("disk", "mqtool receive-log fanout --raw > logs.log"),
        ("screen", "mqtool receive-log fanout"),
        ("emitter", "mqtool emit-log fanout 'info: Hello World!'"),
    ),
    "routing": (
        ("disk", "mqtool receive-log direct error > errors.log"),
        ("screen", "mqtool receive-log direct info warning error"),
        ("emitter", "mqtool emit-log direct error 'Run. Run. Or it will explode.'"),
    ),
    "topics": (
        ("all", "mqtool receive-log topic '#'"),
        ("kernel", "mqtool receive-log topic 'kern.*'"),
        ("critical", "mqtool receive-log topic 'kern.*' '*.critical'"),
        ("emitter", "mqtool emit-log topic kern.critical 'A critical kernel error'"),
    ),
    "headers": (
        ("all", "mqtool receive-log headers --match all format=pdf type=report"),
        ("any", "mqtool receive-log headers --match any format=pdf type=log"),
        ("emitter", "mqtool emit-log headers -H format=pdf -H type=report 'A report'"),
    ),
    "rpc": (("server", "mqtool rpc-server"), ("client", "mqtool rpc-client 30")),
    "publisher-confirms": (("publisher", "mqtool publisher-confirms all"),),
    "delayed-messages": (
        ("receiver", "mqtool receive-delayed"),
        ("sender", "mqtool send-delayed --delay 5s 'Hello World!'"),
    ),
    "stream-hello-world": (("receiver", "mqtool receive-stream"), ("sender", "mqtool send-stream")),
    "stream-offset-tracking": (("sender", "mqtool offset send"), ("receiver", "mqtool offset receive")),
}
#: Prefix of the names of tutorials over AMQP 1.0.
AMQP10 = "amqp10-"
_TERMINALS |= {
    f"{AMQP10}{name}": (("all of them", "export MQTOOL_PROTOCOL=amqp1.0"), *_TERMINALS[name]) for name in OVER_AMQP10
}
NAMES = tuple(_TERMINALS)
#: Short forms of names that learners use.
_OTHER_NAMES = {"pubsub": "publish-subscribe", "stream": "stream-hello-world", "streams": "stream-hello-world"}
#: The tutorials that are numbered at https://www.rabbitmq.com/tutorials.
NUMBERED = ("hello-world", "work-queues", "publish-subscribe", "routing", "topics", "rpc", "publisher-confirms")


@dataclass(frozen=True)
class Page:
    """A tutorial to read.

    Attributes:
        summary: what the tutorial shows, as a phrase.
        picture: lines of text, at most 78 columns wide.
        story: the paragraphs, each without line breaks.
        terminals: each terminal's name, and the commands to type in it.
        source: the source code, without the docstring.
    """

    name: str
    title: str
    summary: str
    picture: str
    story: tuple[str, ...]
    link: str
    terminals: tuple[tuple[str, str], ...]
    source: str
    file: str

    @property
    def library(self) -> str:
        """The name of the client library that the plain script uses."""
        if self.name.startswith(AMQP10):
            return "rabbitmq_amqp_python_client"
        return "rstream" if self.name.startswith("stream-") else "pika"

    @property
    def script(self) -> str:
        """The path of a script that does the same with only a client library, within this package."""
        directory = "plain_amqp10" if self.name.startswith(AMQP10) else f"plain_{self.library}"
        return f"{directory}/{self.name.replace('-', '_')}.py"

    @property
    def plain(self) -> str:
        """The source of that script."""
        return _read(self.script)


def page(name: str) -> Page:
    """Read the page of a tutorial. Raises UsageError if no tutorial has that name."""
    if name not in _TERMINALS:
        raise no_such_tutorial(name, NAMES)
    file = f"{name.replace('-', '_')}.py"
    text = _read(file)
    tree = ast.parse(text)
    docstring = tree.body[0]
    first, *blocks = (ast.get_docstring(tree, clean=False) or "").strip().split("\n\n")
    title, _, summary = first.partition(": ")
    *blocks, link = blocks
    story = tuple(" ".join(block.split()) for block in blocks if not block.startswith(" "))
    source = "\n".join(text.splitlines()[docstring.end_lineno :]).strip("\n")
    picture = "\n\n".join(block for block in blocks if block.startswith(" "))
    return Page(
        name, title, summary, picture, story, link.strip(), _TERMINALS[name], source, f"mqtool/tutorials/{file}"
    )


def numbered(name: str) -> str:
    """Return a tutorial's name, given its name, a usual short form of it, or its number in RabbitMQ's list.

    Raises:
        UsageError: RabbitMQ's list has no such number.
    """
    if name.isascii() and name.isdecimal():
        if not 1 <= int(name) <= len(NUMBERED):
            raise UsageError(
                f"there is no tutorial {name}: RabbitMQ's are numbered 1 to {len(NUMBERED)}",
                "the others have names: mqtool tutorial list",
            )
        return NUMBERED[int(name) - 1]
    return _OTHER_NAMES.get(name, name.replace("_", "-"))


def no_such_tutorial(name: str, names: tuple[str, ...]) -> UsageError:
    """Return the error for an unknown tutorial. Its hint is a name that is similar, or has a similar word in it."""
    words = {word: each for each in reversed(names) for word in each.split("-")}
    similar = words.get(nearest(name, words) or "")
    hint = f"did you mean {similar!r}?" if similar else f"tutorials: {', '.join(names)}"
    return UsageError(f"unknown tutorial {name!r}", did_you_mean(name, names, hint))


def _read(file: str) -> str:
    return resources.files("mqtool.tutorials").joinpath(file).read_text("utf-8")
