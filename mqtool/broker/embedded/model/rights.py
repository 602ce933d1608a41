"""What the user of a connection may do in its virtual host."""

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.errors import access_refused


class Rights:
    """The permissions of a user in a virtual host, remembered until any user changes."""

    def __init__(self, broker: Broker, user: str, vhost: str) -> None:
        self._broker = broker
        self._user = user
        self._vhost = vhost
        self._known: dict[tuple[str, str], bool] = {}
        self._version = -1

    def check(self, what: str, kind: str, name: str) -> None:
        """Check that the user may `configure`, `write` or `read` a `queue` or an `exchange`.

        Raises:
            ChannelException: 403.
        """
        if self._version != self._broker.permissions_version:
            self._known.clear()
            self._version = self._broker.permissions_version
        allowed = self._known.get((what, name))
        if allowed is None:
            allowed = self._known[what, name] = self._allowed(what, name)
        if not allowed:
            which = f"{what} access" if self._broker.profile.names_access else "access"
            raise access_refused(
                f"{which} to {kind} '{name or 'amq.default'}' in vhost '{self._vhost}' refused for user '{self._user}'"
            )

    def _allowed(self, what: str, name: str) -> bool:
        user = self._broker.users.get(self._user)
        permissions = None if user is None else user.permissions.get(self._vhost)
        return permissions is not None and permissions.allow(what, name)
