"""What RabbitMQ refuses from some version on, by default and with a warning in place of an error."""

from mqtool.broker.embedded.model.errors import INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.profile import Profile
from mqtool.codecs.field_tables import Table


def check_deprecated(profile: Profile, arguments: Table, *, durable: bool, exclusive: bool) -> None:
    """Check that a new queue needs nothing that this version does not permit any more.

    Raises:
        ConnectionException: 541, with RabbitMQ's words, of which a reply has room for the first.
    """
    if not (durable or exclusive or profile.transient_queues):
        raise _refused("transient_nonexcl_queues")
    if "x-queue-master-locator" in arguments and not profile.master_locator:
        raise _refused("queue_master_locator")


def _refused(feature: str) -> ConnectionException:
    return ConnectionException(
        INTERNAL_ERROR,
        f"Feature `{feature}` is deprecated.\nBy default, this feature is not permitted anymore.\nThe feature will be "
        "removed from a future major RabbitMQ version, regardless of the configuration; actual version to be "
        "determined.\nTo continue using this feature when it is not permitted by default, set the following parameter "
        "in your configuration:",
    )
