"""Words that people know from other tools, and the commands that they stand for. Help does not list them."""

from collections.abc import Sequence

ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("publish",): ("send",),
    ("pub",): ("send",),
    ("consume",): ("receive",),
    ("sub",): ("receive",),
    ("queue", "ls"): ("list", "queues"),
    ("exchange", "ls"): ("list", "exchanges"),
    ("user", "ls"): ("list", "users"),
    ("vhost", "ls"): ("list", "vhosts"),
    ("permission", "ls"): ("list", "permissions"),
    ("plugin", "ls"): ("list", "plugins"),
}


def without_aliases(words: Sequence[str]) -> list[str]:
    """A command line whose first words are the command's own name."""
    for typed, meant in ALIASES.items():
        if tuple(words[: len(typed)]) == typed:
            return [*meant, *words[len(typed) :]]
    return list(words)
