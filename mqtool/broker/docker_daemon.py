"""Connects to the Docker daemon, and pulls and builds the image for RabbitMQ.

Only mqtool/broker/docker*.py import docker (https://docker-py.readthedocs.io), and only inside functions, because the
import takes a third of a second.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mqtool.broker import ports
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

if TYPE_CHECKING:
    from docker.client import DockerClient

#: The Dockerfile of the image that `broker up --kind docker` builds, and the files that it copies.
IMAGE_FILES = Path(__file__).parent / "image"
#: The base image unless `--image` names another; the same as in docker-compose.yml and the Dockerfile.
DEFAULT_IMAGE = f"rabbitmq:{PROFILES[DEFAULT].version}-management"
_ANSWER_PATIENCE = 600
_OTHER_KINDS = "choose --kind node or --kind embedded"
_WITHOUT_THE_PLUGIN = "run 'docker build' in mqtool/broker/image for details"
_PROGRESS_PAUSE = 5.0


@contextmanager
def daemon_of_this_machine(patience: float = _ANSWER_PATIENCE) -> Iterator["DockerClient"]:
    """Connect to the Docker daemon. Inside the `with` block, Docker's errors are translated into mqtool's.

    Args:
        patience: seconds to wait for each answer.

    Raises:
        Unavailable: the daemon does not respond or is on another machine, or a port is in use.
        AccessRefused: no permission to use the daemon.
        MqtoolError: the daemon refuses a request.
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
        client = DockerClient.from_env(environment={**os.environ, "DOCKER_HOST": host}, timeout=patience)
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
    if re.search(r"port is already allocated|address already in use|ports are not available", explanation):
        port = re.search(r"127\.0\.0\.1:(\d+)", explanation)
        return Unavailable(f"port {port[1] if port else ''} on {ports.HOST} is taken", "choose another with --port")
    return MqtoolError(f"Docker refused: {explanation.strip()}")


def base_image(wanted: str | None) -> str:
    """Return the name of the base image. A bare version such as 4.2 means Docker Hub's image with management."""
    if wanted is None:
        return DEFAULT_IMAGE
    return f"rabbitmq:{wanted}-management" if re.fullmatch(r"\d+(\.\d+)*", wanted) else wanted


def build_arguments(base: str) -> dict[str, str]:
    """Return Docker's build arguments: the base image, and the delayed-message plugin for its RabbitMQ, if any.

    Args:
        base: the name of the image. The plugin is added if the tag is a version, as for the official images.
    """
    version = re.search(r":(\d+\.\d+)[\d.]*(-management)?(-alpine)?$", base)
    releases = (IMAGE_FILES / "plugins.sha256").read_text()
    plugin = version and re.search(rf"https:.*-{re.escape(version[1])}\..*", releases)
    return {"BASE_IMAGE": base, "PLUGIN_URL": plugin[0] if plugin else ""}


def image_tag(base_id: str) -> str:
    """Return the name of the image that mqtool builds on a base image. Changing one of IMAGE_FILES changes the name."""
    key = hashlib.sha256(base_id.encode())
    for path in sorted(path for path in IMAGE_FILES.iterdir() if path.is_file()):
        key.update(path.name.encode() + path.read_bytes())
    return f"mqtool-rabbitmq:{key.hexdigest()[:12]}"


def image_upon(daemon: "DockerClient", base: str, say: Callable[[str], None]) -> None:
    """Build mqtool's image on top of a base image, unless it exists. Calls `say` with each line of progress."""
    tag = tag_upon(daemon, base, say)
    if not daemon.images.list(tag):
        say(f"building an image on {base} …")
        _build(daemon, base, tag)


def tag_upon(daemon: "DockerClient", base: str, say: Callable[[str], None]) -> str:
    """Return the name of mqtool's image for a base image. Pulls the base image if it is missing."""
    from docker.errors import ImageNotFound

    try:
        found = daemon.images.get(base)
    except ImageNotFound:
        _pull(daemon, base, say)
        found = daemon.images.get(base)
    return image_tag(str(found.id))


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
        path=str(IMAGE_FILES), tag=tag, buildargs=build_arguments(base), rm=True, forcerm=True, decode=True
    ):
        if "error" in line:
            why = said[-1] if "non-zero code" in line["error"] else line["error"]
            raise Unavailable(f"cannot build an image from {base}: {why.strip()}", _WITHOUT_THE_PLUGIN)
        said += [text for text in [line.get("stream", "").strip()] if text]
