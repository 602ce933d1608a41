"""Words that newcomers guess or know from other tools, and the mqtool commands that do the same."""

from collections.abc import Iterable, Sequence

from mqtool.cli.help.index import ALIASES
from mqtool.spelling import mistyped

#: Verbs that may follow the name of any group, and the verbs of mqtool's groups that do the same.
VERBS = {
    "start": ("up",),
    "stop": ("down",),
    "create": ("declare", "add", "enable"),
    "add": ("declare",),
    "remove": ("delete", "drop", "rm", "clear", "cancel"),
    "delete": ("drop", "rm", "clear", "cancel"),
    "rm": ("delete", "drop", "clear", "cancel"),
    "clear": ("purge", "drop"),
    "purge": ("drop",),
    "empty": ("purge", "drop"),
    "retry": ("redrive",),
    "requeue": ("redrive",),
    "grant": ("set",),
    "revoke": ("clear",),
    "save": ("export",),
    "backup": ("export",),
    "dump": ("export",),
    "load": ("import",),
    "restore": ("import",),
    "ls": ("list",),
    "list": ("ls",),
    "info": ("show",),
    "get": ("show",),
    "default": ("use",),
    "switch": ("use",),
}

#: Commands, each with the words for which a hint suggests it; a hint names all commands that have the word. "queue get"
#: is the word "get" after `mqtool queue`.
GUESSES = {
    # Messages
    "send": ("produce", "producer", "enqueue", "push", "queue send", "queue publish", "send-message"),
    "send --delay 5s": ("delay",),
    "send --at": ("schedule",),
    "peek": ("get", "read", "browse", "inspect", "show", "view", "cat", "less", "more", "queue get", "queue peek"),
    "peek --where": ("find", "search", "grep"),
    "receive": ("get", "read", "pull", "subscribe", "fetch", "dequeue", "queue receive", "queue consume"),
    "receive -c 1": ("pop",),
    "send-stream": ("stream", "kafka-console-producer"),
    "receive-stream": ("stream", "kafka-console-consumer"),
    "rpc-client": ("rpc",),
    "rpc-server": ("rpc",),
    "emit-log": ("send-log", "fanout", "direct", "topic", "headers"),
    "receive-log": ("fanout", "direct", "topic", "headers"),
    "emit-log topic": ("topics",),
    "receive-log topic": ("topics",),
    "move": ("transfer", "shovel", "queue move", "mv"),
    "tap": ("trace", "firehose", "tail", "follow", "log"),
    "tap --json": ("record", "recording record"),
    "recording replay": ("replay",),
    "recording scrub": ("scrub", "anonymize"),
    "recording reconcile": ("reconcile",),
    "dlq": ("deadletter", "deadletters", "dead-letter", "dead-letters"),
    "dlq show": ("dlq peek",),
    "dlq redrive": ("redrive", "requeue", "queue redrive", "dlq move"),
    "help retries": ("retry",),
    # The broker
    "broker up": ("start", "up", "broker run"),
    "broker down": ("stop", "down"),
    "broker restart": ("restart",),
    "broker serve": ("serve", "broker run"),
    "broker logs": ("logs",),
    "broker env": ("env",),
    "broker fault": ("fault",),
    "broker status": ("status", "cluster", "cluster_status", "nodes", "list nodes"),
    "wait": ("ping",),
    "top": ("queue top", "watch", "rates", "monitor", "metrics", "stats", "overview"),
    "doctor": ("health", "check", "lint", "cluster", "cluster_status", "nodes", "list nodes"),
    "doctor --format prometheus": ("metrics", "prometheus"),
    "topology": ("graph", "diagram"),
    "broker ls": ("list brokers",),
    "context add": ("login", "alias"),
    "context use": ("use", "checkout"),
    "context show": ("context current",),
    "context ls": ("context current", "list contexts"),
    "definitions export": ("backup", "save", "dump", "export"),
    "definitions diff": ("diff",),
    "definitions import": ("load", "restore", "import"),
    # Queues, exchanges and users
    "queue declare": ("create", "declare", "queue new", "create-queue"),
    "exchange declare": ("declare",),
    "queue delete": ("delete",),
    "queue purge": ("purge",),
    "policy ls": ("list policies",),
    "queue show": ("inspect", "show", "view", "describe"),
    "exchange bind": ("bind", "queue bind"),
    "exchange unbind": ("unbind", "queue unbind"),
    "list queues": ("queues", "ls", "count", "queue count"),
    "list bindings": ("bindings", "binding"),
    "list exchanges": ("exchanges", "exchange show", "exchange info"),
    "list channels": ("channels", "channel"),
    "list connections": ("connections",),
    "list consumers": ("consumers", "consumer"),
    "list users": ("users", "user show", "user info"),
    "list permissions": ("permissions", "permission show", "permission info"),
    "list plugins": ("plugins",),
    "list vhosts": ("vhosts",),
    "offset show": ("kafka-consumer-groups", "lag"),
    # Help
    "help": ("docs", "man", "help topics"),
    "help connection": ("tls", "ssl", "help password"),
    "help delays": ("help schedule",),
    "help exit-codes": ("help exit",),
    "connection close": ("close_all_connections", "kick"),
    "cheat": ("examples",),
    "cheat scripts": ("help scripts",),
    "cheat streams": ("help streams",),
    "tutorial run": ("run",),
    "tutorial try": ("try",),
    "tutorial run hello-world": ("demo", "quickstart"),
}


def meant_by(word: str, group: str, names: Iterable[str]) -> list[str]:
    """Return the commands, without "mqtool", that a user probably meant by a word that is not a command.

    Only a word with one wrong letter counts as a typing error. A word that merely resembles a command is usually
    another verb, and the command may delete messages.

    Args:
        group: the words before it, such as "queue"; "" after "mqtool".
        names: the commands of the group.
    """
    start = f"{group} " if group else ""
    own = [start + name for name in names]
    guesses = [(guess, command) for command, words in GUESSES.items() for guess in words]
    verbs = [(start + verb, start + each) for verb, words in VERBS.items() for each in words if start + each in own]
    named, guessed, by_verb = (
        _after(start, pairs) for pairs in (zip(own, own, strict=True), [*ALIASES.items(), *guesses], verbs)
    )
    known = by_verb | guessed | named
    # "remote" is not the verb "remove" with a wrong letter.
    return known.get(word) or known.get(mistyped(word, named | guessed) or "", [])


def _after(start: str, pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return what is meant by each single word after `start`, from pairs of what is typed and what is meant."""
    found: dict[str, list[str]] = {}
    for typed, command in pairs:
        word = typed.removeprefix(start)
        if typed.startswith(start) and " " not in word:
            found.setdefault(word, []).append(command)
    return found


def did_you_mean_commands(commands: Sequence[str]) -> str:
    """Return the hint "did you mean 'mqtool …' or 'mqtool …'?"."""
    *others, last = [repr(f"mqtool {each}") for each in commands]
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
