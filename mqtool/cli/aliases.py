"""Words that people know from other tools, and the commands that they stand for. Help does not list them."""

from collections.abc import Sequence

_OF_BROKER = ("vhosts", "users", "permissions", "plugins")
_LISTED = ("queues", "exchanges", "bindings", "consumers", "connections", "channels", *_OF_BROKER)

ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("publish",): ("send",),
    ("pub",): ("send",),
    ("consume",): ("receive",),
    ("sub",): ("receive",),
    **{(things[:-1], word): ("list", things) for things in _LISTED for word in ("ls", "list")},
}


def without_aliases(words: Sequence[str]) -> list[str]:
    """A command line whose first words are the command's own name."""
    for typed, meant in ALIASES.items():
        if tuple(words[: len(typed)]) == typed:
            return [*meant, *words[len(typed) :]]
    return list(words)
