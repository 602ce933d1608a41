"""What the node has of files, sockets and disk, and what it takes: part of `/api/nodes`."""

import os
import resource
from pathlib import Path
from typing import Any

from mqtool.broker.embedded.model.broker import LOW_ON_DISK, LOW_ON_MEMORY, Broker

# Of Linux.
_IO = Path("/proc/self/io")
_IO_NAMES = {
    "io_read_count": "syscr",
    "io_read_bytes": "read_bytes",
    "io_write_count": "syscw",
    "io_write_bytes": "write_bytes",
}


def resources(broker: Broker) -> dict[str, Any]:
    """Return them with RabbitMQ's names; files and I/O are those of the process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 2**20 if limit == resource.RLIM_INFINITY else limit
    low_on = set(broker.alarms.values())
    return {
        "os_pid": str(os.getpid()),
        "processors": os.cpu_count(),
        "mem_used": broker.ledger.held_bytes,
        "mem_limit": broker.memory_limit,
        "mem_alarm": LOW_ON_MEMORY in low_on,
        "disk_free": broker.ledger.disk_free(),
        "disk_free_limit": broker.disk_free_limit,
        "disk_free_alarm": LOW_ON_DISK in low_on,
        "fd_used": len(list(Path("/dev/fd").iterdir())),
        "fd_total": files,
        "sockets_used": len(broker.clients()),
        # As RabbitMQ reckons.
        "sockets_total": int((files - 100) * 0.9) - 2,
        **_io(),
    }


def _io() -> dict[str, int]:
    if not _IO.exists():
        return {}
    found = dict(line.split(": ") for line in _IO.read_text().splitlines())
    return {name: int(found[own]) for name, own in _IO_NAMES.items()}
