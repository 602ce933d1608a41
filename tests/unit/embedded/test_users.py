"""Logins, permissions, and the addresses from which guest may log in."""

import asyncio

import pytest

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import Permissions, User


def test_the_size_of_the_permission_cache_is_limited() -> None:
    """If a client publishes to 3,000 different exchanges, the embedded broker caches the client's permissions for at
    most 1,000 of them.
    """

    async def known() -> int:
        broker = Broker(Ledger())
        broker.create_defaults()
        rights = Rights(broker, "guest", "/")
        for number in range(3000):
            rights.check("write", "exchange", f"e{number}")
        return len(rights._known)

    assert asyncio.run(known()) <= 1000


def authenticate(name: str, password: str, from_loopback: bool) -> bool:
    async def ask() -> bool:
        broker = Broker(Ledger())
        broker.create_defaults()
        broker.save_user(User.with_password("ann", "secret", []))
        return broker.authenticate(name, password, from_loopback=from_loopback) is not None

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "password", "from_loopback", "allowed"),
    [
        ("guest", "guest", True, True),
        ("guest", "guest", False, False),
        ("guest", "wrong", True, False),
        ("guest", "", True, False),
        ("ann", "secret", False, True),
        ("nobody", "secret", True, False),
    ],
)
def test_guest_can_log_in_only_from_a_loopback_address(
    name: str, password: str, from_loopback: bool, allowed: bool
) -> None:
    """The user `guest` can log in only from a loopback address. Any login with a wrong or empty password, or with an
    unknown user name, is refused.
    """
    assert authenticate(name, password, from_loopback) is allowed


def test_permission_patterns_are_regular_expressions() -> None:
    """A user has a permission for a queue or exchange if the regular expression of the permission matches any part of
    the name. For the default exchange, whose name is empty, the expression must match `amq.default`. An empty
    expression matches nothing.
    """
    permissions = Permissions(configure="^a$", write="default", read="")
    assert permissions.allow("configure", "a")
    assert not permissions.allow("configure", "ab")
    assert permissions.allow("write", "")
    assert Permissions(write="^amq[.]default$").allow("write", "")
    assert not permissions.allow("read", "anything")
