"""What the broker's refusals mean, in our words."""

import json
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mqtool.errors import AccessRefused, DeclaredDifferently, MqtoolError, NotFound, Unavailable, UsageError

if TYPE_CHECKING:
    from requests import Response

HOW_TO_ENABLE = (
    "is the broker up? Enable it there with 'rabbitmq-plugins enable rabbitmq_management', or name it with --management"
)


def refusal(answer: "Response", url: str, user: str) -> MqtoolError:
    """What an answer that is not the one hoped for means.

    Args:
        url: of the API.
        user: who has asked.
    """
    reason = _said(answer)
    match answer.status_code:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return _access_refused(url, user, reason)
        case HTTPStatus.NOT_FOUND if "application/json" in answer.headers.get("content-type", ""):
            return NotFound(f"the broker has no {_missing(answer.url)}")
        case HTTPStatus.BAD_REQUEST if "inequivalent" in reason:
            return DeclaredDifferently(f"it exists with other settings: {reason}")
        case HTTPStatus.BAD_REQUEST if "invalid_regexp" in reason or "regular expression" in reason:
            return UsageError("one of the patterns is not a valid regular expression", "'.*' matches everything")
        case HTTPStatus.BAD_REQUEST:
            return UsageError(f"the broker refuses: {reason}")
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            return Unavailable(f"{url} is not a management API", HOW_TO_ENABLE)
        case status:
            return Unavailable(f"the management API at {url} answers {status} {reason}".rstrip())


def _said(answer: "Response") -> str:
    try:
        said = json.loads(answer.content)
        return str(said.get("reason") or said.get("error") or answer.reason)
    except (ValueError, AttributeError):
        return str(answer.reason)


def _missing(url: str) -> str:
    """What a path names, as words."""
    kind, *names = (unquote(part) for part in urlsplit(url).path.partition("/api/")[2].split("/"))
    match kind, names:
        case "vhosts", [vhost, *_]:
            return f"vhost {vhost!r}"
        case "queues" | "exchanges" | "bindings" | "consumers" | "policies", [vhost]:
            return f"vhost {vhost!r}"
        case "queues" | "exchanges", [vhost, name, *_]:
            return f"{kind[:-1]} {name!r} in vhost {vhost!r}, or no such vhost"
        case "policies" | "operator-policies", [vhost, name]:
            return f"policy {name!r} in vhost {vhost!r}, or no such vhost"
        case "users", [name, *_]:
            return f"user {name!r}"
    return " ".join([kind, *map(repr, names)])


def _access_refused(url: str, user: str, reason: str) -> AccessRefused:
    where = f"the management API at {url}"
    if "management" in reason:
        return AccessRefused(
            f"{where} refuses user {user!r}", "the user needs the tag 'management': mqtool user tags USER management"
        )
    for sign, tag in (("administrator", "administrator"), ("monitor", "monitoring")):
        if sign in reason:
            return AccessRefused(f"{where} does not allow user {user!r} to do this", f"the user needs the tag {tag!r}")
    if "Login failed" in reason or reason == "Not_Authorized":  # before and from RabbitMQ 4.0
        return AccessRefused(f"{where} refuses user {user!r} with this password")
    return AccessRefused(f"{where} does not allow user {user!r} to do this: {reason}")
