"""The Docker daemon: its errors in our words, and the image that it pulls and builds.

Only mqtool/broker/docker*.py import docker (https://docker-py.readthedocs.io), and only within functions: it takes a
third of a second.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mqtool.broker import image, ports
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

if TYPE_CHECKING:
    from docker.client import DockerClient

_ANSWER_PATIENCE = 600
_OTHER_KINDS = "choose --kind node or --kind embedded"
_WITHOUT_THE_PLUGIN = "run 'docker build' in mqtool/broker/image for details"
_PROGRESS_PAUSE = 5.0


@contextmanager
def daemon_of_this_machine() -> Iterator["DockerClient"]:
    """Connect to the Docker daemon.

    Raises:
        Unavailable: it does not answer, or is on another machine; or, within the block, a port is taken.
        AccessRefused: no permission to use it.
        MqtoolError: it refuses a request within the block.
    """
    from docker.client import DockerClient
    from docker.context.api import ContextAPI
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    host = os.environ.get("DOCKER_HOST") or ContextAPI.get_current_context().Host
    if not re.match(r"unix://|npipe://|tcp://(localhost|127\.0\.0\.1)\b", host):
        raise Unavailable(
            f"the Docker daemon is on another machine, {host}; mqtool only uses a local one", _OTHER_KINDS
        )
    try:
        client = DockerClient.from_env(environment={**os.environ, "DOCKER_HOST": host}, timeout=_ANSWER_PATIENCE)
    except (DockerException, RequestException) as error:
        raise _no_daemon(error, host) from error
    try:
        yield client
    except APIError as error:
        raise _refusal(str(error.explanation or error)) from error
    except RequestException as error:
        raise _no_daemon(error, host) from error
    finally:
        client.close()


def _no_daemon(error: Exception, host: str) -> MqtoolError:
    where = host.removeprefix("unix://")
    if "PermissionError" in str(error) or "Permission denied" in str(error):
        return AccessRefused(
            f"no permission to use the Docker daemon at {where}",
            "run 'sudo usermod -aG docker $USER' and log in again, or " + _OTHER_KINDS,
        )
    return Unavailable(f"the Docker daemon does not answer at {where}", f"start it, or {_OTHER_KINDS}")


def _refusal(explanation: str) -> MqtoolError:
    """The error for a request that the daemon refuses."""
    if re.search(r"port is already allocated|address already in use|ports are not available", explanation):
        port = re.search(r"127\.0\.0\.1:(\d+)", explanation)
        return Unavailable(f"port {port[1] if port else ''} on {ports.HOST} is taken", "choose another with --port")
    return MqtoolError(f"Docker refused: {explanation.strip()}")


def image_upon(daemon: "DockerClient", base: str, say: Callable[[str], None]) -> None:
    """Build the image on another one, unless it is here.

    Raises:
        Unavailable: it cannot be pulled or built.
    """
    tag = tag_upon(daemon, base, say)
    if not daemon.images.list(tag):
        say(f"building an image on {base} …")
        _build(daemon, base, tag)


def tag_upon(daemon: "DockerClient", base: str, say: Callable[[str], None]) -> str:
    """The name of the image built on another one, which is pulled if it is not here; see image.tag()."""
    from docker.errors import ImageNotFound

    try:
        found = daemon.images.get(base)
    except ImageNotFound:
        _pull(daemon, base, say)
        found = daemon.images.get(base)
    return image.tag(str(found.id))


def _pull(daemon: "DockerClient", name: str, say: Callable[[str], None]) -> None:
    from docker.errors import APIError
    from docker.utils.utils import parse_repository_tag

    say(f"pulling {name}, which may take a few minutes …")
    repository, tag = parse_repository_tag(name)
    layers: dict[str, tuple[int, int]] = {}
    said = time.monotonic()
    try:
        for line in daemon.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in line:
                raise _cannot_pull(name, line["error"])
            if line.get("status") == "Downloading" and (detail := line.get("progressDetail") or {}).get("total"):
                layers[line["id"]] = (detail["current"], detail["total"])
            if layers and time.monotonic() > said + _PROGRESS_PAUSE:
                done, total = (sum(each) / 1e6 for each in zip(*layers.values(), strict=True))
                say(f"  {done:.0f} of {total:.0f} MB")
                said = time.monotonic()
    except APIError as error:
        raise _cannot_pull(name, str(error.explanation or error)) from error


def _cannot_pull(name: str, why: str) -> Unavailable:
    return Unavailable(
        f"cannot pull {name}: {why.strip()}", f"use a local image (see 'docker images'), or {_OTHER_KINDS}"
    )


def _build(daemon: "DockerClient", base: str, tag: str) -> None:
    said = [""]
    for line in daemon.api.build(
        path=str(image.CONTEXT), tag=tag, buildargs=image.arguments(base), rm=True, forcerm=True, decode=True
    ):
        if "error" in line:
            why = said[-1] if "non-zero code" in line["error"] else line["error"]
            raise Unavailable(f"cannot build an image from {base}: {why.strip()}", _WITHOUT_THE_PLUGIN)
        said += [text for text in [line.get("stream", "").strip()] if text]
