"""The 'incident' play: a production failure is recorded, pseudonymised, and replayed on another broker."""

import json

from mqtool.plays.performing import api_of, embedded_broker
from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Terminal

_CHARGE = """\
#!/bin/sh
# charges a card; yen have no cents
case $(cat) in *JPY*) echo 'no cents in JPY' >&2; exit 65;; esac
echo charged
"""
_FIXED = "#!/bin/sh\ncat > /dev/null; echo charged\n"
_PEOPLE = {"EUR": "Ann Lee", "USD": "Bob Ray", "JPY": "Aiko Mori", "GBP": "Cy Dunn"}
_ORDERS = [
    {"name": name, "email": f"{name.split()[0].lower()}@mail.example", "amount": 1200, "currency": currency}
    for currency, name in _PEOPLE.items()
]
_DEAD, _ERROR = "dead after 1 attempt", "error: "


def play(stage: Stage) -> None:
    charge = stage.file("charge")
    charge.write_text(_CHARGE)
    charge.chmod(0o755)
    stage.file("orders").write_text("".join(f"{json.dumps(order)}\n" for order in _ORDERS))
    queue = stage.name("charges")
    work = f"mqtool worker -q {queue} --declare --retries 0 --exec ./charge"

    shop, worker, tap = stage.terminals("shop", "worker", "tap")
    worker.start(work)
    said = _fails(stage, shop, worker, tap)
    _is_made_fit_to_share(stage, tap)
    stage.say("On a laptop with its own broker, the same worker receives the same messages and fails again.")
    with (
        embedded_broker(stage.place.scratch / "laptop", stage.place.guard) as (fresh, management),
        stage.audience.on_broker(api_of(management)),
    ):
        laptop, again = stage.terminals("laptop", "worker on laptop", url=fresh)
        again.start(work)
        laptop.run(f"mqtool recording replay incident.ndjson --speed max --to-queue {queue}")
        again.wait_for(_DEAD, 1)
        shown = laptop.run(f"mqtool dlq show {queue}")
        stage.expect("the charge also fails on the laptop, for the same reason", _errors(shown), said)

        stage.say("Fix the worker, and move the failed message: to another queue or, with --to-url, to another broker.")
        charge.write_text(_FIXED)
        laptop.run(f"mqtool move {queue}.dlq --to {queue}")
        again.wait_for("charged", len(_ORDERS))
        again.interrupt()
        stage.expect("now all charges have been made", again.count("charged"), len(_ORDERS))


def _fails(stage: Stage, shop: Terminal, worker: Terminal, tap: Terminal) -> list[str]:
    """Cause the incident; return the lines that `dlq show` prints about the dead letter."""
    exchange, queue = stage.name("payments"), stage.name("charges")
    stage.say(
        "A worker charges cards, and now and then a charge fails. A tap receives a copy of each message, and does not "
        "remove any from the queue."
    )
    shop.run(f"mqtool exchange declare {exchange} topic")
    shop.run(f"mqtool exchange bind {exchange} {queue} 'charge.#'")
    tap.start(f"mqtool tap {exchange} 'charge.#' --json > seen.ndjson")
    shop.run(f"mqtool send -e {exchange} -r charge.card -l < orders")
    worker.wait_for(_DEAD, 1)
    stage.wait_for_lines(stage.file("seen.ndjson"), len(_ORDERS))
    tap.interrupt()
    worker.interrupt()
    shown = shop.run(f"mqtool dlq show {queue}")
    said = _errors(shown)
    stage.expect("one of the charges failed, and the tap got a copy of each message", len(said), 1)
    return said


def _is_made_fit_to_share(stage: Stage, terminal: Terminal) -> None:
    stage.say(
        "The recording contains names and addresses. `recording scrub` replaces them with others of the same form. "
        "Equal values get equal replacements, and only the fields named by --keep stay unchanged."
    )
    terminal.run("mqtool recording scrub --keep routing_key,body.currency seen.ndjson > incident.ndjson")
    terminal.run("mqtool recording replay incident.ndjson --dry-run")
    shared = stage.file("incident.ndjson").read_text()
    stage.expect("no customer's name is left", [name for name in _PEOPLE.values() if name in shared], [])
    stage.expect("every currency is unchanged", [each for each in _PEOPLE if each not in shared], [])


def _errors(shown: list[str]) -> list[str]:
    return [line.partition(_ERROR)[2] for line in shown if _ERROR in line]


INCIDENT = Play(
    "Replay an incident",
    "A failure in production is recorded, pseudonymised so that it can be shared, and replayed on another broker.",
    play,
    queues=("charges", "charges.dlq"),
    exchanges=("payments",),
)
