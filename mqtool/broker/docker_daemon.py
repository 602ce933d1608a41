"""The Docker daemon, through Docker's own client: its errors in our words, and the image that it pulls and builds."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from mqtool.broker import image, ports
from mqtool.errors import AccessRefused, MqtoolError, NotFound, Unavailable

_OTHER_KINDS = "choose --kind node or --kind embedded"
_WITHOUT_THE_PLUGIN = "run 'docker build' in mqtool/broker/image for details"
_PROGRESS_PAUSE = 5.0
_NO_DAEMON = re.compile("cannot connect to the docker daemon|failed to connect to the docker api|during connect", re.I)
_PORT_TAKEN = re.compile("port is already allocated|address already in use|ports are not available")


def call(*arguments: str) -> str:
    """Run a docker command; return what it prints.

    Raises:
        Unavailable: Docker is not installed, its daemon does not answer or is on another machine, or a port is taken.
        NotFound: it has no such image or container.
        AccessRefused: no permission to use it.
        MqtoolError: it refuses.
    """
    done = attempt(*arguments)
    if done.returncode:
        raise _failure(done.stderr)
    return done.stdout


def attempt(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a docker command that may fail. Raises Unavailable as call() does."""
    _check_host()
    return _run(*arguments)


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us
            check=False,
        )
    except OSError as error:
        raise Unavailable(f"cannot run docker: {error.strerror}", _OTHER_KINDS) from error


@contextmanager
def reading(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A docker command whose output is read as it comes, its errors with it; at the end of the block, it is killed."""
    with subprocess.Popen(
        ["docker", *arguments],
        env={**os.environ, "DOCKER_BUILDKIT": "0"},  # whose errors bury what a command has said
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@cache
def _check_host() -> None:
    """Check that the daemon is on this machine, whose ports are to lead to its containers."""
    told = ("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    host = os.environ.get("DOCKER_HOST") or _run(*told).stdout.strip()
    if host and not re.match(r"unix://|npipe://|tcp://(localhost|127\.0\.0\.1)\b", host):
        raise Unavailable(
            f"the Docker daemon is on another machine, {host}; mqtool only uses a local one", _OTHER_KINDS
        )


def _failure(said: str) -> MqtoolError:
    """The error for what docker has said."""
    where = match[1] if (match := re.search(r"(?:unix|npipe)://([^\s:]+)", said)) else "its address"
    if "permission denied while trying to connect" in said:
        return AccessRefused(
            f"no permission to use the Docker daemon at {where.rstrip('.')}",
            "run 'sudo usermod -aG docker $USER' and log in again, or " + _OTHER_KINDS,
        )
    if _NO_DAEMON.search(said):
        return Unavailable(f"the Docker daemon does not answer at {where.rstrip('.')}", f"start it, or {_OTHER_KINDS}")
    if _PORT_TAKEN.search(said):
        port = re.search(r"127\.0\.0\.1:(\d+)", said)
        return Unavailable(f"port {port[1] if port else ''} on {ports.HOST} is taken", "choose another with --port")
    why = re.sub(r"^docker: |^Error response from daemon: |\s*Run 'docker run --help'.*", "", said.strip(), flags=re.S)
    return NotFound(why) if "No such" in said else MqtoolError(f"Docker refused: {why}")


def build_upon(base: str, say: Callable[[str], None]) -> None:
    """Build the image on another one, unless it is here.

    Raises:
        Unavailable: it cannot be pulled or built.
    """
    tag = tag_upon(base, say)
    if call("images", "--quiet", tag):
        return
    say(f"building an image on {base} …")
    options = [f"--build-arg={name}={value}" for name, value in image.arguments(base).items()]
    with reading("build", "--tag", tag, "--force-rm", *options, str(image.CONTEXT)) as building:
        assert building.stdout is not None
        said = [line.decode(errors="replace").strip() for line in building.stdout]
        if building.wait():
            why = [line for line in said if line and "non-zero code" not in line]
            raise Unavailable(f"cannot build an image from {base}: {why[-1] if why else ''}", _WITHOUT_THE_PLUGIN)


def tag_upon(base: str, say: Callable[[str], None] = lambda _: None) -> str:
    """The name of the image built on another one, which is pulled if it is not here; see image.tag()."""
    identity = ("image", "inspect", "--format", "{{.Id}}", base)
    try:
        found = call(*identity)
    except NotFound:
        _pull(base, say)
        found = call(*identity)
    return image.tag(found.strip())


def _pull(name: str, say: Callable[[str], None]) -> None:
    say(f"pulling {name}, which may take a few minutes …")
    layers = pulled = 0
    line, said = b"", time.monotonic()
    with reading("pull", name) as pulling:
        assert pulling.stdout is not None
        for line in pulling.stdout:
            layers += b"Pulling fs layer" in line
            pulled += b"Pull complete" in line
            if time.monotonic() > said + _PROGRESS_PAUSE:
                say(f"  {pulled} of {layers} layers")
                said = time.monotonic()
        if pulling.wait():
            why = line.decode(errors="replace").strip().removeprefix("Error response from daemon: ")
            hint = f"use a local image (see 'docker images'), or {_OTHER_KINDS}"
            raise Unavailable(f"cannot pull {name}: {why}", hint)
