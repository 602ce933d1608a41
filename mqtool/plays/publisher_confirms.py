"""Tutorial 7."""

from mqtool.stage.stage import Play, Stage

_COUNT = 5_000


def play(stage: Stage) -> None:
    """Three ways to wait for confirms, and what each costs."""
    (publisher,) = stage.terminals("publisher")

    stage.say(
        f"Publish {_COUNT:,} messages in three ways: waiting for each confirm, waiting once per hundred messages, and "
        "handling confirms as they arrive. Which is fastest, and by how much?"
    )
    publisher.run(f"mqtool publisher-confirms all -c {_COUNT}")

    # The command fails unless the broker confirms all of them.
    published = f"Published {_COUNT:,} messages "
    stage.expect(
        f"{_COUNT:,} messages were published and confirmed in each of the three ways",
        [line.partition(" in ")[0] for line in publisher.after(published)],
        ["individually", "in batch", "and handled confirms asynchronously"],
    )


PLAY = Play(
    "Publisher confirms", "The broker confirms each message. Waiting for every confirm in turn is the slow way.", play
)
