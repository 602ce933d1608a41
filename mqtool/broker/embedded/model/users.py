"""Users: passwords, tags, permissions and limits."""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Self

from mqtool.broker.embedded.model.applied_policies import found

#: RabbitMQ's password hashing algorithms, and the names of the digests in Python's hashlib.
ALGORITHMS = {
    "rabbit_password_hashing_sha256": "sha256",
    "rabbit_password_hashing_sha512": "sha512",
    "rabbit_password_hashing_md5": "md5",
}

DEFAULT_USER = "guest"
DEFAULT_ALGORITHM = "rabbit_password_hashing_sha256"


@dataclass(frozen=True)
class Permissions:
    """The permissions of a user in a virtual host: regular expressions for the names of queues and exchanges."""

    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"

    def allow(self, what: str, name: str) -> bool:
        """Return True if the user may `configure`, `write` or `read` a queue or an exchange ("" is the default one)."""
        pattern: str = getattr(self, what)
        # In RabbitMQ, an empty pattern matches only the empty name.
        return found(pattern or "^$", name or "amq.default")


@dataclass(frozen=True)
class TopicPermissions:
    """The permissions of a user for a topic exchange: regular expressions for routing keys.

    `{username}` and `{vhost}` in an expression stand for the names of the user and the virtual host.
    """

    write: str = ".*"
    read: str = ".*"

    def allow(self, what: str, key: str, user: str, vhost: str) -> bool:
        """Return True if the user may publish (`write`) or bind (`read`) with a routing key."""
        pattern: str = getattr(self, what)
        return found((pattern or "^$").replace("{username}", user).replace("{vhost}", vhost), key)


@dataclass
class User:
    """A user account.

    Attributes:
        password_hash: a salt of four bytes, followed by the digest of the salt and the password, as in RabbitMQ; None
            if the user cannot log in.
        tags: the user's tags, such as `administrator`.
        permissions: the permissions, by virtual host.
        topic_permissions: the topic permissions, by virtual host and exchange. Without an entry, every routing key is
            allowed.
        limits: the user's limits, by the names in `broker.OF_USERS`.
    """

    name: str
    password_hash: bytes | None
    tags: list[str] = field(default_factory=list)
    permissions: dict[str, Permissions] = field(default_factory=dict)
    algorithm: str = DEFAULT_ALGORITHM
    limits: dict[str, int] = field(default_factory=dict)
    topic_permissions: dict[tuple[str, str], TopicPermissions] = field(default_factory=dict)

    @classmethod
    def with_password(cls, name: str, password: str, tags: list[str]) -> Self:
        """Create a user with this password and no permissions."""
        salt = os.urandom(4)
        return cls(name, salt + hashlib.sha256(salt + password.encode(errors="surrogateescape")).digest(), tags)

    def authenticates(self, password: str) -> bool:
        """Return True if the password is correct. An empty password never is."""
        if not password or self.password_hash is None:
            return False
        salt, digest = self.password_hash[:4], self.password_hash[4:]
        actual = hashlib.new(ALGORITHMS[self.algorithm], salt + password.encode(errors="surrogateescape")).digest()
        return hmac.compare_digest(actual, digest)
