"""`python -m mqtool.broker.embedded`: the embedded broker as a process."""

import argparse
import gc
import logging
import sys
from pathlib import Path

from mqtool.broker.embedded.model.broker import CONSUMER_TIMEOUT
from mqtool.broker.embedded.server import DEFAULT_PORT, Server, Settings, serve


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mqtool.broker.embedded",
        description="An AMQP 0-9-1 broker for learning, demonstrations and tests. SIGTERM stops it cleanly.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--listen", action="append", help="address for AMQP instead of --host; repeatable")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="AMQP port, 0 for any free one")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", type=Path, help="keep durable queues and persistent messages here")
    where.add_argument("--in-memory", action="store_true", help="keep nothing")
    parser.add_argument("--management-port", type=int, help="port of the management HTTP API, 0 for any free one")
    parser.add_argument("--stream-port", type=int, help="port of the stream protocol, 0 for any free one")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="block publishers above this")
    parser.add_argument("--consumer-timeout", type=float, metavar="SECONDS", default=CONSUMER_TIMEOUT)
    parser.add_argument("--ready-file", type=Path, help="written once it listens: the URLs, and any damage")
    parser.add_argument("--log-file", type=Path, help="log here instead of to stderr")
    return parser


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args()
    logging.basicConfig(filename=options.log_file, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def ready(server: Server) -> None:
        if server.damage is not None and options.log_file is not None:
            print(f"embedded broker: {server.damage}", file=sys.stderr)
        if options.ready_file is None:
            return
        lines = [f"amqp://guest:guest@{options.host}:{server.port}/%2F"]
        if server.management_port is not None:
            lines.append(f"http://{options.host}:{server.management_port}")
        if server.stream_port is not None:
            lines.append(f"rabbitmq-stream://{options.host}:{server.stream_port}")
        if server.management_port is not None:
            lines += [server.damage] if server.damage is not None else []
        # Whoever waits for the file must never see half of it.
        partial = options.ready_file.with_name(options.ready_file.name + ".partial")
        partial.unlink(missing_ok=True)
        with partial.open("x") as file:  # "x" follows no symbolic link
            file.write("\n".join(lines) + "\n")
        partial.replace(options.ready_file)

    settings = Settings(
        options.host,
        options.port,
        options.data_dir,
        options.management_port,
        options.memory_limit,
        options.consumer_timeout,
        options.listen,
        options.stream_port,
    )
    # Queues hold many objects for long. Left to itself the collector would walk through them over and over.
    gc.set_threshold(100_000, 20, 100)
    try:
        serve(settings, ready)
    except OSError as error:
        if options.log_file is not None:
            logging.error("cannot start: %s", error)
        print(f"embedded broker: {error}", file=sys.stderr)
        return 1
    finally:
        if options.ready_file is not None:
            options.ready_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
