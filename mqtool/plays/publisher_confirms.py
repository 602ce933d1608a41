"""Tutorial 7."""

from mqtool.stage.stage import Play, Stage

_COUNT = 5_000


def play(stage: Stage) -> None:
    """The three ways, and what each costs."""
    (publisher,) = stage.terminals("publisher")

    stage.say(
        f"{_COUNT:,} messages, three times: waiting for each confirm in turn, waiting once for every hundred, and not "
        "waiting at all: confirms are handled as they come. Which is fastest, and by how much?"
    )
    publisher.run(f"mqtool publisher-confirms all -c {_COUNT}")

    # The command fails unless the broker has confirmed them all.
    published = f"Published {_COUNT:,} messages "
    stage.expect(
        f"{_COUNT:,} messages were published and confirmed in each of three ways",
        [line.partition(" in ")[0] for line in publisher.after(published)],
        ["individually", "in batch", "and handled confirms asynchronously"],
    )


PLAY = Play(
    "Publisher confirms",
    "The broker confirms what it has taken; to wait for each confirm in turn is the slow way to learn it.",
    play,
)
