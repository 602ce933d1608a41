"""What a channel sets up again."""

from mqtool.amqp.reopening import Journal, is_named_by_broker
from mqtool.topology import Binding, Exchange, Queue


def test_entries_keep_their_order_and_know_the_exchanges() -> None:
    """A binding needs what it binds."""
    journal = Journal()
    entries = [Exchange("logs"), Queue("q"), Binding("logs", "q")]
    for entry in entries:
        journal.remember(entry)
    assert list(journal) == entries
    assert journal.exchanges == ["logs"]


def test_a_queue_that_the_broker_named_has_another_name_after_a_reconnection() -> None:
    """Bindings follow it, unless an exchange of that name is meant."""
    journal = Journal()
    journal.renamed("amq.gen-1", "amq.gen-2")
    assert (journal.current_name("amq.gen-1"), journal.current_name("q")) == ("amq.gen-2", "q")
    assert journal.current(Binding("logs", "amq.gen-1", "key")).destination == "amq.gen-2"
    assert journal.current(Binding("logs", "amq.gen-1", to_exchange=True)).destination == "amq.gen-1"
    assert is_named_by_broker(Queue("amq.gen-1", exclusive=True))
    assert not is_named_by_broker(Queue("amq.gen-1"))


def test_what_differs_is_remembered_by_kind_and_name() -> None:
    """Until it is gone."""
    journal = Journal()
    journal.set_differs(Queue("x"))
    assert journal.differs(Queue("x", durable=True))
    assert not journal.differs(Exchange("x"))
    journal.unset_differs(Queue("x"))
    assert not journal.differs(Queue("x"))
