"""Who may do what with the management API. https://www.rabbitmq.com/docs/management#permissions"""

from http import HTTPStatus

from mqtool.broker.embedded.http.server import HttpError
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.users import User

TAGS = {"administrator", "monitoring", "policymaker", "management"}
SEES_ALL = {"administrator", "monitoring"}
_OF_VHOST = ("queues", "exchanges", "bindings", "consumers")

# What only administrators may see, and what only they may change besides.
_SECRET = {"users", "permissions", "topic-permissions", "definitions", "all-configuration", "feature-flags"}
_GUARDED = {"vhosts", "vhost-limits", "user-limits", "cluster-name", "reset", "rebalance", *_SECRET}


def _refused(reason: str) -> HttpError:
    return HttpError(HTTPStatus.UNAUTHORIZED, "not_authorised", reason)


def _foreign(profile: Profile) -> HttpError:
    """A virtual host that the user has no permissions in."""
    if profile.hides_vhosts:
        return HttpError(HTTPStatus.NOT_FOUND, "not_found", "Not Found")
    return _refused("User not authorised to access virtual host")


def check_login(user: User | None) -> User:
    """The user who logged in.

    Raises:
        HttpError: 401.
    """
    if user is None:
        raise _refused("Login failed")
    if not TAGS.intersection(user.tags):
        raise _refused("Not management user")
    return user


def check_administrator(user: User) -> None:
    """Check that a user is an administrator.

    Raises:
        HttpError: 401.
    """
    if "administrator" not in user.tags:
        raise _refused("Not administrator user")


def check_read(user: User, path: list[str], profile: Profile) -> None:
    """Check that a user may see what a path names.

    Raises:
        HttpError: 401.
    """
    if path[0] in _SECRET or (path[0] == "vhosts" and path[2:] in (["permissions"], ["topic-permissions"])):
        check_administrator(user)
    _check_policy(user, path, profile)
    if SEES_ALL.intersection(user.tags):
        return
    if path[:1] == ["nodes"]:
        raise _refused("Not monitor user")
    if len(path) > 1 and path[0] in ("vhosts", "vhost-limits", *_OF_VHOST) and path[1] not in user.permissions:
        raise _foreign(profile)


def check_close(user: User, owner: str) -> None:
    """Check that a user may close a connection of this owner.

    Raises:
        HttpError: 401.
    """
    if user.name != owner:
        check_administrator(user)


def check_change(user: User, path: list[str], profile: Profile) -> None:
    """Check that a user may change what a path names: in a virtual host it takes the rights that AMQP asks for.

    Raises:
        HttpError: 401.
    """
    if path[0] in _GUARDED or path[3:] == ["actions"]:
        check_administrator(user)
        return
    _check_policy(user, path, profile)
    if len(path) < 3 or path[0] not in _OF_VHOST:
        return
    needed = _needed(path)
    if not needed:
        return
    vhost = path[1]
    rights = user.permissions.get(vhost)
    if rights is None:
        raise _foreign(profile)
    for what, name in needed:
        if not rights.allow(what, name):
            raise _refused(f"access to '{name}' in vhost '{vhost}' refused for user '{user.name}'")


def _check_policy(user: User, path: list[str], profile: Profile) -> None:
    """Check that a user may see policies or parameters, or see and change one: operators' are the administrator's."""
    match path:
        case ["operator-policies", _, _]:
            check_administrator(user)
        case ["policies", vhost, _] if "administrator" not in user.tags:
            if "policymaker" not in user.tags or vhost not in user.permissions:
                raise _refused("User not authorised to access object")
        case ["parameters" | "global-parameters", *rest] if "administrator" not in user.tags:
            if "policymaker" not in user.tags or (len(rest) > 1 and rest[1] not in user.permissions):
                raise _refused("User not authorised to access object")
        case ["policies" | "operator-policies", vhost] if "administrator" not in user.tags:
            if vhost not in user.permissions:
                raise _foreign(profile)


def _needed(path: list[str]) -> list[tuple[str, str]]:
    """Return the rights that a change takes, and to what."""
    match path:
        case ["queues", _, name, "contents" | "get"]:
            return [("read", name)]
        case ["exchanges", _, name, "publish"]:
            return [("write", "" if name == "amq.default" else name)]
        case ["queues" | "exchanges", _, name]:
            return [("configure", name)]
        case ["bindings", _, "e", source, _, destination, *_]:
            return [("write", destination), ("read", source)]
    return []
