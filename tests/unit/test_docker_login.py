"""The user and password of a broker in Docker."""

import pytest

from mqtool.broker.docker import _login
from mqtool.broker.state import Started, Wanted

BEFORE = Started("default", "docker", "amqp://ann:kept@127.0.0.1:5672", 0, "/nowhere", {})


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        (None, "guest:guest"),
        (("ann", "a secret"), "ann:a%20secret"),
        (("ann", None), "ann:kept"),  # the messages and users of this broker were kept
    ],
    ids=["no user", "user and password", "user without a password"],
)
def test_a_broker_in_docker_keeps_the_users_password(login: tuple[str, str | None] | None, expected: str) -> None:
    """If a broker in Docker is started again with the same user, but without a password, the user keeps the earlier
    password. If no user is given, the user is guest with the password guest.
    """
    assert _login(Wanted(login=login), BEFORE) == expected


def test_a_new_user_of_a_broker_in_docker_gets_a_random_password() -> None:
    """If a broker in Docker is started with a new user, but without a password, the user gets a long random
    password.
    """
    made = {_login(Wanted(login=("bob", None)), BEFORE) for _ in range(2)}
    assert len(made) == 2
    assert all(each.startswith("bob:") and len(each) > 20 for each in made)
