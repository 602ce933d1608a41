"""RabbitMQ in Docker: one container or a cluster of three, on loopback only, from the image in image/."""

import os
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from mqtool.broker import image, log_files, ports, state
from mqtool.broker.docker_daemon import attempt, build_upon, call, reading, tag_upon
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, NotFound, Unavailable, UsageError

_MANAGEMENT = 15672
_MEMORY = "1g"
#: The label of our containers; its value is the broker's state directory.
_LABEL = "mqtool.directory"
_STOP_PATIENCE = 60
_LOG_PAUSE = 0.2
_CHUNK = 65536


class Docker(Starter):
    """RabbitMQ in containers."""

    kind = "docker"
    is_quick = False

    def is_available(self) -> bool:
        try:
            call("version")
        except MqtoolError:
            return False
        return True

    def prepare(self, wanted: Wanted, say: Callable[[str], None]) -> None:
        if wanted.in_memory or wanted.data_dir:
            option = "--in-memory" if wanted.in_memory else "--data-dir"
            raise UsageError(f"{option} does not work with Docker", "in Docker, messages are kept in a volume")
        if wanted.listen:
            raise Unavailable("in Docker, guest could log in from other machines", "use --kind node or --kind embedded")
        if wanted.cluster and wanted.stream_port is not None:
            raise UsageError("--stream-port does not work with --cluster", "start one node for streams")
        build_upon(image.base_of(wanted.image), say)

    def start(self, wanted: Wanted) -> Started:
        count = wanted.nodes
        directory = state.directory(wanted.name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = ports.choose(wanted.port, ports.AMQP)
        amqp_ports = [first, *(ports.free_port() for _ in range(count - 1))]
        management = ports.choose(wanted.management_port, _MANAGEMENT)
        name = f"mqtool-{wanted.name}"
        containers = [f"{name}-{number}" for number in range(1, count + 1)] if wanted.cluster else [name]
        started = Started(
            name=wanted.name,
            kind=self.kind,
            url=",".join(f"amqp://guest:guest@{ports.HOST}:{port}" for port in amqp_ports),
            pid=0,
            directory=str(directory),
            details={
                "management": f"http://{ports.HOST}:{management}",
                "image": tag_upon(image.base_of(wanted.image)),
                **({"built_on": wanted.image} if wanted.image else {}),
                "data": f"volume{'s'[: count > 1]} {', '.join(containers)}",
                "containers": containers,
                **ports.stream_url(wanted.stream_port),
            },
            nodes=count,
        )
        for container in containers:
            _make_room(container, str(directory))
        try:
            if not call("network", "ls", "--quiet", "--filter", f"name=^{name}$"):
                call("network", "create", "--label", f"{_LABEL}={directory}", name)
            for number in range(count):
                _run(started, number, network=name)
        except BaseException:
            _remove(started)
            raise
        state.save(started)
        return started

    def running(self, started: Started) -> int:
        try:
            return sum(status.startswith("Up") for status in _containers(started).values())
        except Unavailable:  # the daemon does not answer
            return 0

    def is_ready(self, started: Started) -> bool:
        return all("(healthy)" in status for status in _containers(started).values())

    def stop(self, started: Started) -> None:
        _stop(started)
        with log_files.go_on(Path(started.directory) / "log") as kept:
            kept.writelines(self.log(started, follow=False))
        _remove(started)
        state.forget(started.name)

    def restart(self, started: Started) -> Started:
        _stop(started)
        return self.revive(started)

    def kill(self, started: Started, number: int) -> None:
        call("kill", started.details["containers"][number])

    def revive(self, started: Started) -> Started:
        if down := [name for name, status in _containers(started).items() if not status.startswith("Up")]:
            call("start", *down)
        return started

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        options = ["--follow"] if follow else []
        with ExitStack() as stack:
            pipes = stack.enter_context(selectors.DefaultSelector())
            for name in _containers(started):
                process = stack.enter_context(reading("logs", *options, name))
                assert process.stdout is not None
                pipes.register(process.stdout, selectors.EVENT_READ, name if started.nodes > 1 else "")
            rest: dict[str, bytes] = {}
            while pipes.get_map():
                found = b""
                for key, _ in pipes.select(_LOG_PAUSE):
                    if not (data := os.read(key.fd, _CHUNK)):
                        pipes.unregister(key.fileobj)
                    *lines, rest[key.data] = (rest.get(key.data, b"") + data).split(b"\n")
                    found += b"".join(log_files.named(key.data, line) for line in lines)
                yield found

    def discard(self, started: Started) -> None:
        call("volume", "rm", *{volume.partition(":")[0] for volumes in _volumes(started) for volume in volumes})
        super().discard(started)


def execute(started: Started, command: Sequence[str]) -> list[tuple[int, str]]:
    """Run a command in each container; return exit statuses and outputs."""
    done = [attempt("exec", container, *command) for container in _containers(started)]
    return [(result.returncode, result.stdout + result.stderr) for result in done]


def _run(started: Started, number: int, *, network: str) -> None:
    """Run a node's container."""
    names = started.details["containers"]
    environment = {"MQTOOL_PUBLISHED_ON": ports.HOST}
    published = {ports.AMQP: urlsplit(started.url.split(",")[number]).port}
    if number == 0:
        published[_MANAGEMENT] = urlsplit(started.details["management"]).port
    if started.nodes > 1:
        environment["MQTOOL_CLUSTER"] = names[0]
    if streams := urlsplit(started.details.get("streams", "")).port:
        environment["MQTOOL_STREAM_PORT"] = str(streams)
        published[ports.STREAMS] = streams
    call(
        *("run", "--detach", "--name", names[number], "--network", network, "--memory", _MEMORY),
        *("--hostname", names[number]),  # a node finds its data by its name
        f"--label={_LABEL}={started.directory}",
        *(f"--env={name}={value}" for name, value in environment.items()),
        *(f"--publish={ports.HOST}:{port}:{inside}" for inside, port in published.items()),
        *(f"--volume={volume}" for volume in _volumes(started)[number]),
        started.details["image"],
    )


def _volumes(started: Started) -> list[list[str]]:
    """For each node, its volumes with where they are mounted."""
    shared = [f"mqtool-{started.name}-secret:/var/lib/mqtool"] if started.nodes > 1 else []
    return [[f"{name}:/var/lib/rabbitmq", *shared] for name in started.details["containers"]]


def _make_room(container: str, directory: str) -> None:
    """Remove a container that an earlier start left under this name.

    Raises:
        Unavailable: mqtool did not start it.
    """
    try:
        label = call("container", "inspect", "--format", f'{{{{index .Config.Labels "{_LABEL}"}}}}', container)
    except NotFound:
        return
    if label.strip() != directory:
        raise Unavailable(
            f"a container named {container} exists, and mqtool did not start it",
            f"use another --name, or remove it: docker rm -f {container}",
        )
    call("rm", "--force", container)


def _containers(started: Started) -> dict[str, str]:
    """Those of its containers that exist, and how they are: "Up 5 seconds (healthy)"."""
    labelled = f"label={_LABEL}={started.directory}"
    listed = call("ps", "--all", "--filter", labelled, "--format", "{{.Names}}\t{{.Status}}")
    found = dict(line.split("\t") for line in listed.splitlines())
    return {name: found[name] for name in started.details["containers"] if name in found}


def _stop(started: Started) -> None:
    """Stop its containers, all at once."""
    if running := list(_containers(started)):
        call("stop", "-t", str(_STOP_PATIENCE), *running)


def _remove(started: Started) -> None:
    if containers := list(_containers(started)):
        call("rm", "--force", *containers)
    if call("network", "ls", "--quiet", "--filter", f"name=^mqtool-{started.name}$"):
        call("network", "rm", f"mqtool-{started.name}")
