"""The settings of an embedded broker: names, defaults, and help texts of the command-line options.

EmbeddedBroker, `python -m mqtool.broker.embedded`, `broker serve` and `broker up --kind embedded` all use these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.model.profile import DEFAULT

if TYPE_CHECKING:
    from mqtool.broker.embedded.sockets.listener import Tls

CONSUMER_TIMEOUT = 1800.0
DISK_FREE_LIMIT = 50_000_000

#: The options that make up Settings.tls, in the order of the fields of Tls.
TLS_OPTIONS = {
    "--tls-cert": "Certificate (PEM); adds TLS port N - 1 for each port N",
    "--tls-key": "Key of the certificate (PEM)",
    "--tls-client-ca": "Require client certificates signed by this CA",
}


def _option(about: str, type: type, metavar: str | None = None) -> dict[str, Any]:  # noqa: A002 - argparse's word
    return {"help": about, "type": type, "metavar": metavar}


@dataclass(frozen=True)
class Settings:
    """The settings of an embedded broker.

    Attributes:
        host: the address to listen on.
        port: the AMQP port; 0 for any free one.
        data_dir: a directory for durable queues and persistent messages; None keeps everything in memory.
        management_port: the port of the management API; 0 for any free one, None to disable it.
        stream_port: the port of the stream protocol; 0 for any free one, None to disable it.
        listen: the addresses for AMQP and streams; if empty, `host` is used.
        definitions: a file of definitions in RabbitMQ's export format, loaded when the broker starts.
        tls: PEM files for TLS. If given, the broker also accepts TLS connections, on the port one below each plain
            port, such as 5671 for 5672. None for plain TCP only.
        like: the RabbitMQ version to behave like: 3.10, 4.0, 4.2, 4.3, 4.3.5 (refuses transient queues) or 4.4.
        memory_limit: block publishers when messages take more bytes than this; None for 40% of the machine's memory.
        disk_free_limit: block publishers when fewer bytes than this are free in the data directory.
        consumer_timeout: how long a delivery may stay unacknowledged, in seconds.
        guest_from_anywhere: let the guest user log in from other machines.
        recording: record what happens to messages, so that tests can query it.
        prometheus_port: the port for Prometheus metrics; 0 for any free one, None to disable it. It accepts
            connections from 127.0.0.1 only, without a login. RabbitMQ uses 15692.
    """

    host: str = field(default="127.0.0.1", metadata=_option("Address to listen on", str, "ADDRESS"))
    port: int = field(default=5672, metadata=_option("AMQP port; 0 for any free one", int))
    data_dir: Path | None = field(
        default=None, metadata=_option("Directory for messages; by default, nothing is kept", Path, "DIRECTORY")
    )
    management_port: int | None = field(
        default=None, metadata=_option("Port of the management API; 0 for any free one", int)
    )
    stream_port: int | None = field(
        default=None, metadata=_option("Port of the stream protocol; 0 for any free one", int)
    )
    listen: Sequence[str] = field(
        default=(), metadata=_option("Address for AMQP and streams instead of --host; repeatable", list, "ADDRESS")
    )
    definitions: Path | None = field(
        default=None, metadata=_option("RabbitMQ definitions to load when the broker starts", Path, "FILE")
    )
    tls: "Tls | None" = None
    like: str = field(default=str(DEFAULT), metadata=_option("RabbitMQ version to emulate", str))
    memory_limit: int | None = field(default=None, metadata=_option("Block publishers above this", int, "BYTES"))
    disk_free_limit: int = field(default=DISK_FREE_LIMIT, metadata=_option("Block publishers below this", int, "BYTES"))
    consumer_timeout: float = field(
        default=CONSUMER_TIMEOUT, metadata=_option("Time to acknowledge a delivery", float, "SECONDS")
    )
    guest_from_anywhere: bool = field(default=False, metadata=_option("Let guest log in from other machines", bool))
    recording: bool = field(
        default=False, metadata=_option("Record messages, for GET /api/mqtool/published/VHOST", bool)
    )
    prometheus_port: int | None = field(
        default=None, metadata=_option("Port for Prometheus metrics (no login); 0 for any free one", int)
    )

    def arguments(self) -> Iterator[str]:
        """Yield the command-line arguments of `python -m mqtool.broker.embedded` for these settings."""
        for each in fields(self):
            value = getattr(self, each.name)
            if value == each.default:
                continue
            if each.name == "tls":
                given = zip(TLS_OPTIONS, (value.cert, value.key, value.client_ca), strict=True)
                yield from (f"{option}={path}" for option, path in given if path is not None)
            elif value is True:
                yield option_of(each.name)
            else:
                yield from (
                    f"{option_of(each.name)}={one}" for one in ([value] if each.metadata["type"] is not list else value)
                )


def option_of(name: str) -> str:
    """Return the command-line option of a setting, such as `--data-dir` for `data_dir`."""
    return f"--{name.replace('_', '-')}"


def help_of(name: str) -> str:
    """Return the help text of a setting's command-line option."""
    (found,) = (each for each in fields(Settings) if each.name == name)
    return str(found.metadata["help"])
