"""The node as a process of the operating system, and what it can do."""

import os
import resource
from pathlib import Path
from typing import Any

from mqtool.broker.embedded.model.broker import LOW_ON_DISK, LOW_ON_MEMORY, Broker

Json = dict[str, Any]

FEATURE_FLAGS = {
    "classic_mirrored_queue_version": "rabbit",
    "drop_unroutable_metric": "rabbitmq_management_agent",
    "empty_basic_get_metric": "rabbitmq_management_agent",
    "implicit_default_bindings": "rabbit",
    "maintenance_mode_status": "rabbit",
    "quorum_queue": "rabbit",
    "stream_queue": "rabbit",
    "user_limits": "rabbit",
    "virtual_host_metadata": "rabbit",
}
"""Those of RabbitMQ 3.10, and who brings them. All of what they stand for is here, so all are enabled."""


def feature_flags() -> list[Json]:
    """/api/feature-flags."""
    return [
        {"name": name, "desc": "", "doc_url": "", "state": "enabled", "stability": "stable", "provided_by": provider}
        for name, provider in FEATURE_FLAGS.items()
    ]


def process(broker: Broker) -> Json:
    """The part of /api/nodes that is about its process, and what it is short of."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    low_on = set(broker.alarms.values())
    return {
        "mem_used": broker.ledger.held_bytes,
        "mem_limit": broker.memory_limit,
        "mem_alarm": LOW_ON_MEMORY in low_on,
        "disk_free": broker.ledger.disk_free(),
        "disk_free_limit": broker.disk_free_limit,
        "disk_free_alarm": LOW_ON_DISK in low_on,
        "io_read_count": usage.ru_inblock,
        "io_write_count": usage.ru_oublock,
        "os_pid": str(os.getpid()),
        "processors": os.cpu_count(),
        "run_queue": 0,
        "fd_used": _open_descriptors(descriptors),
        "fd_total": descriptors,
        "sockets_used": len(broker.clients()),
        "sockets_total": descriptors,
        "partitions": [],
        "cluster_links": [],
        "rates_mode": "basic",
        "auth_mechanisms": [{"name": name, "description": "", "enabled": True} for name in ("PLAIN", "AMQPLAIN")],
    }


def _open_descriptors(limit: int) -> int:
    try:
        return len(list(Path("/dev/fd").iterdir()))
    except OSError:
        return limit  # even listing them takes one, and there is none left
