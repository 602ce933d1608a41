"""Keeping web pages out: a page in a browser on this machine could send requests to the management API.

A page of another site sends its `Origin`. A page whose own host name has been pointed at this machine (DNS rebinding)
sends that name as `Host`: so a name must be one that nobody else can own.
"""

import ipaddress
import socket
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from mqtool.broker.embedded.http.server import HttpError


def check_origin(headers: Mapping[str, str], listening_on: str) -> None:
    """Check that a request does not come from a web page.

    Args:
        headers: the request's.
        listening_on: the host that the broker was told to listen on.

    Raises:
        HttpError: 403 for a foreign origin, 421 for a foreign host name.
    """
    host = headers.get("host", "localhost").lower()
    if not _is_ours(host, listening_on):
        reason = f"host '{host}' is not known here; use the IP address of the broker"
        raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, "misdirected_request", reason)
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host:
        raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", f"requests from {origin} are not accepted")


def _is_ours(host: str, listening_on: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    # A name without a dot is one of a local network, e.g. that of a container: no web page has it.
    if "." not in name.rstrip(".") and ":" not in name:
        return True
    return name in (listening_on.lower(), socket.gethostname().lower()) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
