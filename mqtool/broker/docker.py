"""Runs RabbitMQ in Docker, as one container or a cluster of three. Ports are published on loopback only."""

import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from mqtool.amqp import parse_addresses
from mqtool.broker import ports, state
from mqtool.broker.background import append_to_log, prefixed
from mqtool.broker.docker_daemon import base_image, daemon_of_this_machine, image_upon, tag_upon
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, Unavailable, UsageError

if TYPE_CHECKING:
    from docker.client import DockerClient
    from docker.models.containers import Container

_MEMORY = "1g"
#: The label of the containers that mqtool starts. Its value is the broker's state directory.
_LABEL = "mqtool.directory"
_STOP_PATIENCE = 60
_LOG_PAUSE = 0.2

#: Seconds in which the daemon must say whether a broker runs. Many commands ask.
_BRIEFLY = 3
#: States of a container whose broker runs.
_RUNNING = ("running", "paused")


class Docker(Starter):
    kind = "docker"
    is_quick = False

    def is_available(self) -> bool:
        if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists() or _config_file().exists()):
            return False
        try:
            with daemon_of_this_machine():
                return True
        except MqtoolError:
            return False

    def prepare(self, wanted: Wanted, say: Callable[[str], None]) -> None:
        if wanted.in_memory or wanted.data_dir:
            option = "--in-memory" if wanted.in_memory else "--data-dir"
            raise UsageError(f"{option} does not work with Docker", "in Docker, messages are kept in a volume")
        if wanted.listen:
            raise Unavailable("in Docker, guest could log in from other machines", "use --kind node or --kind embedded")
        with daemon_of_this_machine() as daemon:
            image_upon(daemon, base_image(wanted.image), say)

    def start(self, wanted: Wanted) -> Started:
        count = wanted.nodes
        directory = state.made_directory(wanted.name)
        before = state.load_last(wanted.name)
        first = ports.choose(wanted.port, ports.usual_amqp(before))
        amqp_ports = [first, *(ports.free_port() for _ in range(count - 1))]
        management = ports.choose(wanted.management_port, ports.usual_management(before, first))
        login = _login(wanted, before)
        name = f"mqtool-{wanted.name}"
        containers = [f"{name}-{number}" for number in range(1, count + 1)] if wanted.cluster else [name]
        with daemon_of_this_machine() as daemon:
            tag = tag_upon(daemon, base_image(wanted.image), lambda _: None)
            started = Started(
                name=wanted.name,
                kind=self.kind,
                url=",".join(f"amqp://{login}@{ports.HOST}:{port}" for port in amqp_ports),
                pid=0,
                directory=str(directory),
                details={
                    "management": f"http://{ports.HOST}:{management}",
                    "image": tag,
                    **({"built_on": wanted.image} if wanted.image else {}),
                    "data": f"volume{'s'[: count > 1]} {', '.join(containers)}",
                    "containers": containers,
                    **({} if wanted.cluster else ports.stream_url(wanted.stream_port, before)),
                },
                nodes=count,
            )
            for container in containers:
                _make_room(daemon, container, str(directory))
            try:
                network = _network(daemon, name)
                for number in range(count):
                    _run(daemon, started, number, network=network)
            except BaseException:
                _remove(daemon, started)
                raise
        state.save(started)
        return started

    def running(self, started: Started) -> int:
        try:
            with daemon_of_this_machine() as daemon:
                return sum(container.status in _RUNNING for container in _containers(daemon, started))
        except Unavailable:  # the daemon does not respond
            return 0

    def runs(self, started: Started, number: int) -> bool:
        name = started.details["containers"][number]
        with daemon_of_this_machine(_BRIEFLY) as daemon:
            return any(
                each.name == name and each.status in _RUNNING and each.labels.get(_LABEL) == started.directory
                for each in _containers(daemon, started)
            )

    def is_ready(self, started: Started) -> bool:
        with daemon_of_this_machine() as daemon:
            return all(
                container.attrs["State"].get("Health", {}).get("Status") == "healthy"
                for container in _containers(daemon, started)
            )

    def stop(self, started: Started) -> None:
        with daemon_of_this_machine() as daemon:
            _each(lambda container: container.stop(timeout=_STOP_PATIENCE), daemon, started)
            with append_to_log(Path(started.directory) / "log") as kept:
                kept.writelines(self.log(started, follow=False))
            _remove(daemon, started)
        state.forget(started.name)

    def restart(self, started: Started) -> Started:
        with daemon_of_this_machine() as daemon:
            _each(lambda container: container.restart(timeout=_STOP_PATIENCE), daemon, started)
        return started

    def kill(self, started: Started, number: int) -> None:
        with daemon_of_this_machine() as daemon:
            daemon.containers.get(started.details["containers"][number]).kill()

    def revive(self, started: Started) -> Started:
        with daemon_of_this_machine() as daemon:
            for container in _containers(daemon, started):
                if container.status != "running":
                    container.start()
        return started

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        chunks: queue.Queue[bytes | None] = queue.Queue(1000)

        def read(container: "Container") -> None:
            name = container.name if started.nodes > 1 else ""
            rest = b""
            for chunk in container.logs(stream=True, follow=follow):
                *lines, rest = (rest + chunk).split(b"\n")
                chunks.put(b"".join(prefixed(name, line) for line in lines))
            chunks.put(None)

        with daemon_of_this_machine() as daemon:
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

    def to_delete_messages(self, started: Started) -> str | None:
        return f"docker volume rm {' '.join(sorted({name for mounts in _volumes(started) for name in mounts}))}"

    def discard(self, started: Started) -> None:
        with daemon_of_this_machine() as daemon:
            for volume in {name for mounts in _volumes(started) for name in mounts}:
                daemon.volumes.get(volume).remove()
        super().discard(started)


def _login(wanted: Wanted, before: Started | None) -> str:
    """Return the user and password of a broker in URL form, `USER:PASSWORD`."""
    if wanted.login is None:
        return "guest:guest"
    user, password = wanted.login
    if password is None and before is not None and (own := parse_addresses(before.url)[0]).user == user:
        password = own.password
    return f"{quote(user, safe='')}:{quote(password or secrets.token_urlsafe(15), safe='')}"


def _config_file() -> Path:
    """Return the path of Docker's configuration file, which may select a context such as Docker Desktop's."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def execute(started: Started, command: list[str]) -> list[tuple[int, str]]:
    """Run a command in each container of a broker, and return the exit statuses and outputs."""
    with daemon_of_this_machine() as daemon:
        done = [container.exec_run(command) for container in _containers(daemon, started)]
    return [(result.exit_code, result.output.decode("utf-8", "replace")) for result in done]


def _run(daemon: "DockerClient", started: Started, number: int, *, network: str) -> None:
    """Start the container of the node with this number, counted from 0."""
    names = started.details["containers"]
    environment = {"MQTOOL_PUBLISHED_ON": ports.HOST}
    published = {ports.AMQP: urlsplit(started.url.split(",")[number]).port}
    if number == 0:
        published[ports.MANAGEMENT] = urlsplit(started.details["management"]).port
    own = parse_addresses(started.url)[0]
    if own.user != "guest":
        environment |= {"RABBITMQ_DEFAULT_USER": own.user, "RABBITMQ_DEFAULT_PASS": own.password}
    if started.nodes > 1:
        environment["MQTOOL_CLUSTER"] = names[0]
    if streams := urlsplit(started.details.get("streams", "")).port:
        environment["MQTOOL_STREAM_PORT"] = str(streams)
        published[ports.STREAMS] = streams
    daemon.containers.run(
        started.details["image"],
        detach=True,
        name=names[number],
        hostname=names[number],  # the path of a node's data contains its host name
        environment=environment,
        ports={f"{inside}/tcp": (ports.HOST, port) for inside, port in published.items()},
        volumes={name: {"bind": path, "mode": "rw"} for name, path in _volumes(started)[number].items()},
        network=network,
        mem_limit=_MEMORY,
        labels={_LABEL: started.directory},
    )


def _volumes(started: Started) -> list[dict[str, str]]:
    """Return the volumes of each node, as mount points by volume name."""
    shared = {f"mqtool-{started.name}-secret": "/var/lib/mqtool"} if started.nodes > 1 else {}
    return [{name: "/var/lib/rabbitmq", **shared} for name in started.details["containers"]]


def _make_room(daemon: "DockerClient", container: str, directory: str) -> None:
    """Remove the container with this name, if any; raise Unavailable if mqtool did not start it."""
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
    """Create the network of a broker if it does not exist, and return its name."""
    found = daemon.networks.list(names=[f"^{name}$"])
    network = found[0] if found else daemon.networks.create(name, driver="bridge", labels={_LABEL: name})
    return str(network.name)


def _containers(daemon: "DockerClient", started: Started) -> list["Container"]:
    """Return the existing containers of a broker, running or stopped."""
    # Any other container may be removed while its details are asked for.
    found: dict[str, Any] = {each.name: each for each in daemon.containers.list(all=True, ignore_removed=True)}
    return [found[name] for name in started.details["containers"] if name in found]


def _each(do: Callable[["Container"], None], daemon: "DockerClient", started: Started) -> None:
    """Call a function with each container of a broker, in several threads."""
    with ThreadPoolExecutor(started.nodes) as pool:
        list(pool.map(do, _containers(daemon, started)))


def _remove(daemon: "DockerClient", started: Started) -> None:
    for container in _containers(daemon, started):
        container.remove(force=True)
    for network in daemon.networks.list(names=[f"^mqtool-{started.name}$"]):
        network.remove()
