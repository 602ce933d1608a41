"""`python -m mqtool.broker.embedded`: the embedded broker as a process."""

import argparse
import sys
from pathlib import Path

from mqtool.broker.embedded.model.broker import CONSUMER_TIMEOUT, DISK_FREE_LIMIT
from mqtool.broker.embedded.model.profile import DEFAULT, Like
from mqtool.broker.embedded.process import run
from mqtool.broker.embedded.server import DEFAULT_PORT, Settings
from mqtool.broker.embedded.sockets.listener import Tls


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mqtool.broker.embedded",
        description="An AMQP 0-9-1 broker for learning, demonstrations and tests. SIGTERM stops it cleanly.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--listen", action="append", help="address for AMQP instead of --host; repeatable")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="AMQP port, 0 for any free one")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-dir", type=Path, help="keep durable queues and persistent messages here")
    where.add_argument("--in-memory", action="store_true", help="keep nothing (default)")
    parser.add_argument("--management-port", type=int, help="port of the management HTTP API, 0 for any free one")
    parser.add_argument("--stream-port", type=int, help="port of the stream protocol, 0 for any free one")
    parser.add_argument("--definitions", type=Path, metavar="FILE", help="load RabbitMQ definitions at the start")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="listen with TLS as well, on the ports below")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="key of the certificate")
    parser.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="require certificates of this authority")
    parser.add_argument("--like", choices=[*map(str, Like)], default=str(DEFAULT), help="RabbitMQ to behave like")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="block publishers above this")
    parser.add_argument("--disk-free-limit", type=int, metavar="BYTES", default=DISK_FREE_LIMIT)
    parser.add_argument("--consumer-timeout", type=float, metavar="SECONDS", default=CONSUMER_TIMEOUT)
    parser.add_argument("--guest-from-anywhere", action="store_true", help="let guest in from other machines, too")
    parser.add_argument("--ready-file", type=Path, help="written once it listens: the URLs, and any damage")
    parser.add_argument("--print-url", action="store_true", help="print the URLs once it listens")
    parser.add_argument("--recording", action="store_true", help="record what happens to messages, for tests that ask")
    parser.add_argument("--log-file", type=Path, help="log here instead of to stderr")
    return parser


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    parser = _parser()
    options = parser.parse_args()
    files = (options.tls_cert, options.tls_key, options.tls_client_ca)
    if any(files) and not (options.tls_cert and options.tls_key):
        parser.error("TLS needs both --tls-cert and --tls-key")
    settings = Settings(
        options.host,
        options.port,
        options.data_dir,
        options.management_port,
        options.memory_limit,
        options.consumer_timeout,
        options.listen,
        options.stream_port,
        options.recording,
        options.definitions,
        Tls(*files) if any(files) else None,
        options.guest_from_anywhere,
        options.disk_free_limit,
        options.like,
    )
    return run(settings, ready_file=options.ready_file, log_file=options.log_file, print_url=options.print_url)


if __name__ == "__main__":
    sys.exit(main())
