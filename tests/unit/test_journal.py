"""The journal: what a channel declares again after a reconnection."""

from mqtool.amqp.reopening_channel import Journal, is_named_by_broker
from mqtool.topology import Binding, Exchange, Queue


def test_declarations_are_repeated_in_their_order() -> None:
    """After a reconnection, mqtool declares exchanges, queues and bindings again in their original order."""
    journal = Journal()
    entries = [Exchange("logs"), Queue("q"), Binding("logs", "q")]
    for entry in entries:
        journal.remember(entry)
    assert list(journal) == entries
    assert journal.exchanges == ["logs"]


def test_bindings_follow_the_new_name_of_a_server_named_queue() -> None:
    """If a server-named queue gets another name after a reconnection, mqtool declares its bindings again with the new
    name. Bindings to an exchange that has the same name as the old queue are not changed.
    """
    journal = Journal()
    journal.renamed("amq.gen-1", "amq.gen-2")
    assert (journal.current_name("amq.gen-1"), journal.current_name("q")) == ("amq.gen-2", "q")
    current = journal.current(Binding("logs", "amq.gen-1", "key", {"n": 1}))
    assert (current.source, current.destination) == ("logs", "amq.gen-2")
    assert (current.routing_key, current.arguments, current.to_exchange) == ("key", {"n": 1}, False)
    assert journal.current(Binding("logs", "amq.gen-1", to_exchange=True)).destination == "amq.gen-1"
    assert is_named_by_broker(Queue("amq.gen-1", exclusive=True))
    assert not is_named_by_broker(Queue("amq.gen-1"))
    assert not is_named_by_broker(Queue("q", exclusive=True))


def test_the_journal_records_that_a_queue_exists_with_other_arguments() -> None:
    """The Journal lists what a channel declares again after a reconnection. If a queue already exists with other
    arguments, declaring it again makes the broker close the channel. After set_differs() is called for such a queue,
    the Journal marks the queue until unset_differs() is called. It does not mark an exchange with the same name.
    """
    journal = Journal()
    journal.set_differs(Queue("x"))
    assert journal.differs(Queue("x", durable=True))
    assert not journal.differs(Exchange("x"))
    journal.unset_differs(Queue("x"))
    assert not journal.differs(Queue("x"))
