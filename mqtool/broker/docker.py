"""RabbitMQ in Docker: one container or a cluster of three, on loopback only, from the image in image/.

The only module that imports docker (https://docker-py.readthedocs.io), which takes a third of a second: each function
that needs it imports it.
"""

import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqtool.broker import image, log_files, ports, state
from mqtool.broker.state import Started, Wanted
from mqtool.errors import AccessRefused, MqtoolError, Unavailable, UsageError

if TYPE_CHECKING:
    from docker.client import DockerClient
    from docker.models.containers import Container

KIND = "docker"
NODES = 3
_MANAGEMENT = 15672
_MEMORY = "1g"
#: A container that has this label is ours; it says which state directory remembers it.
_LABEL = "mqtool.directory"
_STOP_PATIENCE, _ANSWER_PATIENCE = 60, 600
_OTHER_KINDS = "choose --kind node or --kind embedded"
_WITHOUT_THE_PLUGIN = (
    "'docker build' in mqtool/broker/image tells more; a version other than 4.2 goes without the plugin"
)
_PROGRESS_PAUSE = 5.0
_LOG_PAUSE = 0.2


def is_available() -> bool:
    """Whether Docker's daemon answers, and lets us in."""
    if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists() or _docker_config().exists()):
        return False
    try:
        with _daemon():
            return True
    except MqtoolError:
        return False


def prepare(wanted: Wanted, say: Callable[[str], None]) -> None:
    """Have the image: pull what it builds upon, and build it, unless it is here.

    Raises:
        Unavailable: the daemon does not answer, or the image cannot be pulled or built.
        AccessRefused: we may not talk to the daemon.
        UsageError: Docker cannot start it so.
    """
    if wanted.in_memory or wanted.data_dir:
        option = "--in-memory" if wanted.in_memory else "--data-dir"
        raise UsageError(f"{option} does not work with Docker", "in Docker, messages are kept in a volume")
    with _daemon() as daemon:
        base = image.base_of(wanted.image)
        tag = _tag(daemon, base, say)
        if not _has_image(daemon, tag):
            say(f"building an image upon {base} …")
            _build(daemon, base, tag)


def start(wanted: Wanted) -> Started:
    """Start what prepare() has built; it is not ready yet when this returns.

    Raises:
        Unavailable: the daemon does not answer, a port is taken, or somebody else's container has the name.
        AccessRefused: we may not talk to the daemon.
    """
    count = NODES if wanted.cluster else 1
    directory = state.directory(wanted.name)
    directory.mkdir(parents=True, exist_ok=True)
    first = ports.choose_amqp_port(wanted.port)
    amqp_ports = [first, *(ports.free_port() for _ in range(count - 1))]
    management = _MANAGEMENT if ports.is_free(_MANAGEMENT) else ports.free_port()
    name = f"mqtool-{wanted.name}"
    containers = [f"{name}-{number}" for number in range(1, count + 1)] if wanted.cluster else [name]
    with _daemon() as daemon:
        tag = _tag(daemon, image.base_of(wanted.image), lambda _: None)
        started = Started(
            name=wanted.name,
            kind=KIND,
            url=",".join(f"amqp://guest:guest@{ports.HOST}:{port}" for port in amqp_ports),
            pid=0,
            directory=str(directory),
            details={
                "management": f"http://{ports.HOST}:{management}",
                "image": tag,
                "data": f"volume{'s'[: count > 1]} {', '.join(containers)}",
                "containers": containers,
            },
            nodes=count,
        )
        for container in containers:
            _make_room(daemon, container, str(directory))
        try:
            network = _network(daemon, name)
            for number, port in enumerate(amqp_ports):
                published = {"5672/tcp": (ports.HOST, port)}
                if number == 0:
                    published["15672/tcp"] = (ports.HOST, management)
                _run(daemon, started, number, network=network, published=published)
        except BaseException:
            _remove(daemon, started)
            raise
    state.save(started)
    return started


def running(started: Started) -> int:
    """How many of its nodes run; none where the daemon does not answer."""
    try:
        with _daemon() as daemon:
            return sum(container.status == "running" for container in _containers(daemon, started))
    except Unavailable:
        return 0


def is_ready(started: Started) -> bool:
    """Whether all its nodes say that they are healthy."""
    with _daemon() as daemon:
        return all(
            container.attrs["State"].get("Health", {}).get("Status") == "healthy"
            for container in _containers(daemon, started)
        )


def stop(started: Started) -> None:
    """Stop and remove its containers, and forget them; their volumes stay.

    Raises:
        Unavailable, AccessRefused: there is no way to the daemon.
    """
    with _daemon() as daemon:
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(lambda container: container.stop(timeout=_STOP_PATIENCE), _containers(daemon, started)))
        (Path(started.directory) / "log").write_bytes(b"".join(log(started, follow=False)))
        _remove(daemon, started)
    state.forget(started.name)


def kill(started: Started, number: int) -> None:
    """kill -9 a node; 0 is the first."""
    with _daemon() as daemon:
        daemon.containers.get(started.details["containers"][number]).kill()


def revive(started: Started) -> Started:
    """Start those of its nodes that do not run."""
    with _daemon() as daemon:
        for container in _containers(daemon, started):
            if container.status != "running":
                container.start()
    return started


def log(started: Started, follow: bool) -> Iterator[bytes]:
    """What its nodes have written, as it comes; nothing new for a while is b""."""
    chunks: queue.Queue[bytes | None] = queue.Queue(1000)

    def read(container: "Container") -> None:
        name = container.name if started.nodes > 1 else ""
        rest = b""
        for chunk in container.logs(stream=True, follow=follow):
            *lines, rest = (rest + chunk).split(b"\n")
            chunks.put(b"".join(log_files.named(name, line) for line in lines))
        chunks.put(None)

    with _daemon() as daemon:
        containers = _containers(daemon, started)
        for container in containers:
            threading.Thread(target=read, args=(container,), daemon=True).start()
        reading = len(containers)
        while reading:
            try:
                chunk = chunks.get(timeout=_LOG_PAUSE)
            except queue.Empty:
                yield b""
            else:
                reading -= chunk is None
                yield chunk or b""


def execute(started: Started, command: list[str]) -> list[tuple[int, str]]:
    """Run a command in each of its containers; returns exit statuses, and what was said."""
    with _daemon() as daemon:
        done = [container.exec_run(command) for container in _containers(daemon, started)]
    return [(result.exit_code, result.output.decode("utf-8", "replace")) for result in done]


def discard(started: Started) -> None:
    """Remove all that is left of a broker that has been stopped."""
    with _daemon() as daemon:
        for volume in {name for mounts in _volumes(started) for name in mounts}:
            daemon.volumes.get(volume).remove()
    shutil.rmtree(started.directory, ignore_errors=True)


# The daemon.


@contextmanager
def _daemon() -> Iterator["DockerClient"]:
    """Talk to Docker's daemon; what goes wrong in between is said as what it means to a user."""
    from docker.client import DockerClient
    from docker.context.api import ContextAPI
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    host = os.environ.get("DOCKER_HOST") or ContextAPI.get_current_context().Host
    if not re.match(r"unix://|npipe://|tcp://(localhost|127\.0\.0\.1)\b", host):
        raise Unavailable(
            f"the Docker daemon is on another machine, {host}, whose loopback cannot be reached", _OTHER_KINDS
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
            "sudo usermod -aG docker $USER, and log in again; or " + _OTHER_KINDS,
        )
    return Unavailable(f"the Docker daemon does not answer at {where}", f"start it, or {_OTHER_KINDS}")


def _refusal(explanation: str) -> MqtoolError:
    """What the daemon says no to."""
    if re.search(r"port is already allocated|address already in use|ports are not available", explanation):
        port = re.search(r"127\.0\.0\.1:(\d+)", explanation)
        return Unavailable(f"port {port[1] if port else ''} on {ports.HOST} is taken", "choose another with --port")
    return MqtoolError(f"Docker refused: {explanation.strip()}")


def _docker_config() -> Path:
    """Where a context may be chosen, such as that of Docker Desktop."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


# The image.


def _tag(daemon: "DockerClient", base: str, say: Callable[[str], None]) -> str:
    """The name of the image that is built upon another one; it changes with all that goes into it."""
    from docker.errors import ImageNotFound

    try:
        found = daemon.images.get(base)
    except ImageNotFound:
        _pull(daemon, base, say)
        found = daemon.images.get(base)
    return image.tag(str(found.id))


def _has_image(daemon: "DockerClient", tag: str) -> bool:
    return bool(daemon.images.list(tag))


def _pull(daemon: "DockerClient", name: str, say: Callable[[str], None]) -> None:
    from docker.errors import APIError
    from docker.utils.utils import parse_repository_tag

    say(f"pulling {name} from its registry, which may take a few minutes …")
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
        f"cannot pull {name}: {why.strip()}",
        f"use an image that is here ('docker images' lists them), or {_OTHER_KINDS}",
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


# Containers.


def _run(
    daemon: "DockerClient", started: Started, number: int, *, network: str, published: dict[str, tuple[str, int]]
) -> None:
    names = started.details["containers"]
    daemon.containers.run(
        started.details["image"],
        detach=True,
        name=names[number],
        hostname=names[number],  # a node's data belong to its name
        environment={"MQTOOL_PUBLISHED_ON": ports.HOST, **({"MQTOOL_CLUSTER": names[0]} if started.nodes > 1 else {})},
        ports=published,
        volumes={name: {"bind": path, "mode": "rw"} for name, path in _volumes(started)[number].items()},
        network=network,
        mem_limit=_MEMORY,
        labels={_LABEL: started.directory},
    )


def _volumes(started: Started) -> list[dict[str, str]]:
    """For each node its volumes, and where they are mounted."""
    shared = {f"mqtool-{started.name}-secret": "/var/lib/mqtool"} if started.nodes > 1 else {}
    return [{name: "/var/lib/rabbitmq", **shared} for name in started.details["containers"]]


def _make_room(daemon: "DockerClient", container: str, directory: str) -> None:
    """Remove what an earlier start has left under this name.

    Raises:
        Unavailable: it is somebody else's.
    """
    from docker.errors import NotFound

    try:
        found = daemon.containers.get(container)
    except NotFound:
        return
    if found.labels.get(_LABEL) != directory:
        raise Unavailable(
            f"a container named {container} exists, and mqtool did not start it",
            f"use another --name, or remove it: docker rm -f {container}",
        )
    found.remove(force=True)


def _network(daemon: "DockerClient", name: str) -> str:
    """A network of the broker's own, in which nobody else is."""
    found = daemon.networks.list(names=[f"^{name}$"])
    network = found[0] if found else daemon.networks.create(name, driver="bridge", labels={_LABEL: name})
    return str(network.name)


def _containers(daemon: "DockerClient", started: Started) -> list["Container"]:
    """Those of its containers that are there."""
    found: dict[str, Any] = {each.name: each for each in daemon.containers.list(all=True)}
    return [found[name] for name in started.details["containers"] if name in found]


def _remove(daemon: "DockerClient", started: Started) -> None:
    for container in _containers(daemon, started):
        container.remove(force=True)
    for network in daemon.networks.list(names=[f"^mqtool-{started.name}$"]):
        network.remove()
