"""Mutation testing with mutmut: which changes to a module does no test notice?

    make mutants MODULE=mqtool/routing.py
    python -m tests.mutants --list            # all modules, as JSON

mutmut runs in a copy of the source, `build/mutants/MODULE`, and the tests that judge a module run there. mutmut learns
from one run which test calls which function, so these tests must call the module in pytest's own process: unit tests,
the simulation, and for the clients the integration tests. See docs/explanation/mutation-testing.md.
"""

import argparse
import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTMUT = Path(sys.executable).with_name("mutmut")
_BROKER = "mqtool/broker/embedded"
_EMBEDDED = "tests/unit/embedded"
#: One test case of the simulation, which runs some of the seeds.
_SIMULATION = "tests/simulation/test_simulation.py::test_the_embedded_broker_breaks_no_rule_of_the_simulations_model[0]"
_CLIENT = ("tests/integration", "-k", "not [rabbitmq")

#: The packages and modules in which a bug could lose or misroute messages, falsify a figure or grant too much, each
#: with the tests that judge it. A module with its own entry is judged by these tests, not by those of its package.
JUDGES: Mapping[str, tuple[str, ...]] = {
    "mqtool/routing.py": (f"{_EMBEDDED}/test_routing_tables.py",),
    "mqtool/silence.py": ("tests/unit/test_silence.py",),
    "mqtool/where.py": ("tests/unit/test_where.py",),
    "mqtool/amqp": (
        "tests/unit/test_acknowledgements.py",
        "tests/unit/test_address.py",
        "tests/unit/test_deliveries.py",
        "tests/unit/test_journal.py",
        "tests/unit/test_policies.py",
        "tests/unit/test_publisher.py",
        "tests/unit/test_taps.py",
        *_CLIENT,
    ),
    "mqtool/address.py": ("tests/unit/test_address.py",),
    "mqtool/duration.py": ("tests/unit/test_duration.py", "tests/unit/test_backoff.py"),
    "mqtool/amqp/administration.py": ("tests/unit/test_administration.py",),
    "mqtool/amqp/basic_frames.py": ("tests/unit/test_deliveries.py",),
    "mqtool/amqp/channel.py": ("tests/unit/test_channel.py", "tests/unit/test_publishing.py"),
    "mqtool/amqp/connection.py": ("tests/unit/test_connection.py",),
    "mqtool/amqp/consume_policies.py": ("tests/unit/test_policies.py",),
    "mqtool/amqp/consumer.py": ("tests/unit/test_consumer.py", "tests/unit/test_channel.py"),
    "mqtool/amqp/io_thread.py": ("tests/unit/test_io_thread.py",),
    "mqtool/amqp/pika_errors.py": ("tests/unit/test_pika_errors.py",),
    "mqtool/amqp/pika_private.py": (
        "tests/unit/test_pika_private.py",
        "tests/unit/test_channel.py",
        "tests/unit/test_publishing.py",
        "tests/integration/test_pika_paths.py"
        "::test_mqtool_notices_that_a_private_method_of_pika_is_missing_or_has_changed",
    ),
    "mqtool/amqp/publisher.py": (
        "tests/unit/test_acknowledgements.py",
        "tests/unit/test_channel.py",
        "tests/unit/test_publisher.py",
        "tests/unit/test_publishing.py",
    ),
    "mqtool/amqp/receive_settings.py": ("tests/unit/test_receive_settings.py",),
    "mqtool/amqp/reopening_channel.py": (
        "tests/unit/test_channel.py",
        "tests/unit/test_journal.py",
        "tests/unit/test_publishing.py",
    ),
    "mqtool/amqp/single_thread.py": ("tests/unit/test_single_thread.py",),
    "mqtool/amqp/subscription.py": (
        "tests/unit/test_taps.py",
        "tests/unit/test_consumer.py",
        "tests/unit/test_channel.py",
    ),
    "mqtool/amqp/replies.py": ("tests/unit/test_replies.py",),
    "mqtool/work/mover.py": ("tests/unit/test_mover.py",),
    "mqtool/amqp/unconfirmed.py": ("tests/unit/test_publisher.py",),
    "mqtool/amqp10": ("tests/unit/test_amqp10_codec.py", *_CLIENT),
    "mqtool/amqp10/broker_window.py": ("tests/unit/test_link_connection.py",),
    "mqtool/amqp10/link_connection.py": ("tests/unit/test_link_connection.py",),
    "mqtool/amqp10/link_receiver.py": ("tests/unit/test_link_receiver.py",),
    "mqtool/amqp10/link_sender.py": ("tests/unit/test_link_sender.py",),
    "mqtool/amqp10/link_session.py": ("tests/unit/test_link_session.py",),
    "mqtool/amqp10/management_node.py": ("tests/unit/test_management_node.py",),
    "mqtool/amqp10/refusals.py": ("tests/unit/test_refusals.py",),
    "mqtool/amqp10/reopening_transport.py": ("tests/unit/test_reopening_transport.py",),
    "mqtool/codecs/sections.py": ("tests/unit/test_amqp10_codec.py", "tests/unit/test_sections.py"),
    "mqtool/amqp10/transport.py": ("tests/unit/test_transport.py",),
    "mqtool/cli/chosen_broker.py": ("tests/unit/test_chosen_broker.py",),
    "mqtool/delays": ("tests/unit/test_delay_destinations.py", "tests/unit/test_delays.py", *_CLIENT),
    "mqtool/delays/delay_plugin.py": ("tests/unit/test_delay_plugin.py", "tests/unit/test_delay_holding.py"),
    "mqtool/delays/destinations.py": ("tests/unit/test_delay_destinations.py",),
    "mqtool/delays/holding.py": ("tests/unit/test_delay_holding.py",),
    "mqtool/delays/wait_queues.py": ("tests/unit/test_wait_queues.py", "tests/unit/test_retrying.py"),
    "mqtool/management/overflow.py": ("tests/unit/test_queue_limits.py", "tests/unit/test_diagnosis.py"),
    "mqtool/streams/entries.py": ("tests/unit/test_stream_entries.py",),
    "mqtool/work": ("tests/unit/test_retrying.py", *_CLIENT),
    "mqtool/work/conversion_plan.py": ("tests/unit/test_conversion_plan.py",),
    "mqtool/work/dead_letter_declaration.py": ("tests/unit/test_dead_letter_declaration.py",),
    "mqtool/work/deduplication.py": ("tests/unit/test_deduplication.py",),
    "mqtool/work/delay_relay.py": ("tests/unit/test_delay_relay.py",),
    "mqtool/work/exact_bindings.py": ("tests/unit/test_exact_bindings.py",),
    "mqtool/work/exec_command.py": ("tests/unit/test_exec_command.py",),
    "mqtool/work/held_messages.py": ("tests/unit/test_held_messages.py",),
    "mqtool/work/history.py": ("tests/unit/test_history.py",),
    "mqtool/work/pending_delays.py": ("tests/unit/test_pending_delays.py",),
    "mqtool/work/peeking.py": ("tests/unit/test_peeking.py",),
    "mqtool/work/policy_losses.py": ("tests/unit/test_queue_limits.py",),
    "mqtool/work/queue_conversion.py": ("tests/unit/test_queue_conversion.py",),
    "mqtool/work/queue_limits.py": ("tests/unit/test_queue_limits.py",),
    "mqtool/work/redriving.py": ("tests/unit/test_redriving.py",),
    "mqtool/work/retry_or_dead_letter.py": ("tests/unit/test_retrying.py",),
    "mqtool/work/rpc_functions.py": ("tests/unit/test_rpc_functions.py",),
    "mqtool/work/runner.py": ("tests/unit/test_runner.py",),
    "mqtool/work/transfer.py": ("tests/unit/test_transfer.py",),
    "mqtool/work/worker.py": ("tests/unit/test_worker.py",),
    "mqtool/benching": ("tests/unit/test_bench_clients.py", "tests/unit/test_benching.py"),
    **{
        f"mqtool/benching/{wire}.py": ("tests/unit/test_bench_wires.py",)
        for wire in ("wire", "amqp10_wire", "stream_wire")
    },
    "mqtool/benching/charts.py": ("tests/unit/test_bench_result.py",),
    "mqtool/benching/client_process.py": (
        "tests/unit/test_bench_processes.py",
        "tests/unit/test_bench_clients.py",
        "tests/unit/test_benching.py",
    ),
    "mqtool/benching/comparison.py": ("tests/unit/test_bench_comparison.py",),
    "mqtool/benching/plan.py": ("tests/unit/test_bench_plan.py",),
    "mqtool/benching/result.py": ("tests/unit/test_bench_result.py",),
    "mqtool/benching/run.py": ("tests/unit/test_bench_run.py", "tests/unit/test_benching.py"),
    f"{_BROKER}/amqp10": (_EMBEDDED, _SIMULATION),
    f"{_BROKER}/amqp10/addresses.py": (f"{_EMBEDDED}/test_addresses10.py",),
    f"{_BROKER}/amqp10/amqp10_connection.py": (f"{_EMBEDDED}/test_connections10.py",),
    f"{_BROKER}/amqp10/amqp10_session.py": (
        f"{_EMBEDDED}/test_sessions10.py",
        f"{_EMBEDDED}/test_publishing10.py",
        f"{_EMBEDDED}/test_receiving10.py",
    ),
    f"{_BROKER}/amqp10/amqp10_socket.py": (
        f"{_EMBEDDED}/test_connections10.py",
        f"{_EMBEDDED}/test_certificate_names.py",
    ),
    f"{_BROKER}/amqp10/attaching.py": (f"{_EMBEDDED}/test_attaching10.py",),
    f"{_BROKER}/amqp10/errors10.py": (f"{_EMBEDDED}/test_errors10.py",),
    f"{_BROKER}/amqp10/filtered_message.py": (f"{_EMBEDDED}/test_filters10.py",),
    f"{_BROKER}/amqp10/filters.py": (f"{_EMBEDDED}/test_filters10.py",),
    f"{_BROKER}/amqp10/incoming_link.py": (f"{_EMBEDDED}/test_publishing10.py",),
    f"{_BROKER}/amqp10/like_pattern.py": (f"{_EMBEDDED}/test_filters10.py",),
    f"{_BROKER}/amqp10/management.py": (f"{_EMBEDDED}/test_management10.py",),
    f"{_BROKER}/amqp10/management_pair.py": (
        f"{_EMBEDDED}/test_management_pairs10.py",
        f"{_EMBEDDED}/test_management10.py",
    ),
    f"{_BROKER}/amqp10/outgoing_link.py": (f"{_EMBEDDED}/test_receiving10.py", f"{_EMBEDDED}/test_amqp10_writes.py"),
    f"{_BROKER}/amqp10/session_state.py": (f"{_EMBEDDED}/test_sessions10.py", f"{_EMBEDDED}/test_publishing10.py"),
    f"{_BROKER}/amqp10/sql_filter.py": (f"{_EMBEDDED}/test_filters10.py",),
    f"{_BROKER}/model": (_EMBEDDED, _SIMULATION),
    f"{_BROKER}/model/amqp_errors.py": (f"{_EMBEDDED}/test_amqp_errors.py",),
    f"{_BROKER}/model/amqp_message.py": (f"{_EMBEDDED}/test_amqp_message.py", f"{_EMBEDDED}/test_dead_lettering.py"),
    f"{_BROKER}/model/applied_policies.py": (f"{_EMBEDDED}/test_applied_policies.py",),
    f"{_BROKER}/model/backlog.py": (f"{_EMBEDDED}/test_backlog.py",),
    f"{_BROKER}/model/broker.py": (f"{_EMBEDDED}/test_broker.py", f"{_EMBEDDED}/test_users.py"),
    f"{_BROKER}/model/clock.py": (f"{_EMBEDDED}/test_clock.py",),
    f"{_BROKER}/model/consumers.py": (f"{_EMBEDDED}/test_queue_consumers.py", f"{_EMBEDDED}/test_queue.py"),
    f"{_BROKER}/model/dead_lettering.py": (f"{_EMBEDDED}/test_dead_lettering.py",),
    f"{_BROKER}/model/declarations.py": (f"{_EMBEDDED}/test_declarations.py",),
    f"{_BROKER}/model/deletions.py": (f"{_EMBEDDED}/test_deletions.py", f"{_EMBEDDED}/test_queue.py"),
    f"{_BROKER}/model/exchange.py": (
        f"{_EMBEDDED}/test_exchanges.py",
        f"{_EMBEDDED}/test_queue.py",
        f"{_EMBEDDED}/test_recovery.py",
    ),
    f"{_BROKER}/model/firehose.py": (f"{_EMBEDDED}/test_firehose_copies.py",),
    f"{_BROKER}/model/footprint.py": (f"{_EMBEDDED}/test_memory_counts.py",),
    f"{_BROKER}/model/ledger.py": (f"{_EMBEDDED}/test_ledger.py", f"{_EMBEDDED}/test_memory_limit.py"),
    f"{_BROKER}/model/message_events.py": (f"{_EMBEDDED}/test_recorded_events.py",),
    f"{_BROKER}/model/names.py": (f"{_EMBEDDED}/test_amqp_errors.py",),
    f"{_BROKER}/model/profile.py": (f"{_EMBEDDED}/test_imitated_versions.py",),
    f"{_BROKER}/model/protocol_conversion.py": (
        f"{_EMBEDDED}/test_protocol_conversion.py",
        f"{_EMBEDDED}/test_sectioned.py",
    ),
    f"{_BROKER}/model/queue.py": (
        f"{_EMBEDDED}/test_backlog.py",
        f"{_EMBEDDED}/test_dead_lettering.py",
        f"{_EMBEDDED}/test_queue.py",
        f"{_EMBEDDED}/test_queue_consumers.py",
        f"{_EMBEDDED}/test_limits_of_queues.py",
    ),
    f"{_BROKER}/model/queue_arguments.py": (
        f"{_EMBEDDED}/test_queue_arguments.py",
        f"{_EMBEDDED}/test_declarations.py",
    ),
    f"{_BROKER}/model/rights.py": (f"{_EMBEDDED}/test_permission_checks.py", f"{_EMBEDDED}/test_users.py"),
    f"{_BROKER}/model/sectioned.py": (f"{_EMBEDDED}/test_sectioned.py", f"{_EMBEDDED}/test_protocol_conversion.py"),
    f"{_BROKER}/model/stored_offsets.py": (f"{_EMBEDDED}/test_memory_counts.py",),
    f"{_BROKER}/model/stream_conversion.py": (f"{_EMBEDDED}/test_amqp10.py",),
    f"{_BROKER}/model/stream_log.py": (f"{_EMBEDDED}/test_stream_log.py", f"{_EMBEDDED}/test_stream_queue.py"),
    f"{_BROKER}/model/stream_queue.py": (
        f"{_EMBEDDED}/test_stream_log.py",
        f"{_EMBEDDED}/test_stream_queue.py",
        f"{_EMBEDDED}/test_stream_consumers.py",
    ),
    f"{_BROKER}/model/stream_segment.py": (f"{_EMBEDDED}/test_stream_segment.py",),
    f"{_BROKER}/model/topology_operations.py": (f"{_EMBEDDED}/test_declarations.py",),
    f"{_BROKER}/model/totals.py": (f"{_EMBEDDED}/test_imitated_versions.py",),
    f"{_BROKER}/model/users.py": (f"{_EMBEDDED}/test_permission_checks.py", f"{_EMBEDDED}/test_users.py"),
    f"{_BROKER}/model/virtual_host.py": (
        f"{_EMBEDDED}/test_exchanges.py",
        f"{_EMBEDDED}/test_queue.py",
        f"{_EMBEDDED}/test_virtual_host.py",
    ),
    f"{_BROKER}/store": (_EMBEDDED, _SIMULATION),
    f"{_BROKER}/store/damage.py": (f"{_EMBEDDED}/test_salvage.py",),
    f"{_BROKER}/store/database.py": (
        f"{_EMBEDDED}/test_salvage.py",
        f"{_EMBEDDED}/test_database.py",
        f"{_EMBEDDED}/test_recovery.py",
        f"{_EMBEDDED}/test_sectioned.py",
    ),
    f"{_BROKER}/store/disk.py": (
        f"{_EMBEDDED}/test_disk.py",
        f"{_EMBEDDED}/test_disk_writer.py",
        f"{_EMBEDDED}/test_segment_files.py",
    ),
    f"{_BROKER}/store/recovery.py": (f"{_EMBEDDED}/test_recovery.py", f"{_EMBEDDED}/test_queue.py"),
    f"{_BROKER}/store/segment_files.py": (f"{_EMBEDDED}/test_segment_files.py",),
    f"{_BROKER}/store/change_groups.py": (f"{_EMBEDDED}/test_storage.py", f"{_EMBEDDED}/test_recovery.py"),
    f"{_BROKER}/store/storage.py": (f"{_EMBEDDED}/test_storage.py", f"{_EMBEDDED}/test_recovery.py"),
    f"{_BROKER}/store/writer.py": (f"{_EMBEDDED}/test_disk_writer.py",),
}


def modules() -> Iterator[str]:
    """Yield all modules to mutate, as paths from the root of the repository."""
    for judged in sorted(JUDGES):
        path = ROOT / judged
        found = sorted(path.glob("*.py")) if path.is_dir() else [path]
        for module in (each.relative_to(ROOT).as_posix() for each in found):
            if judged == module or module not in JUDGES:
                yield module


def judges_of(module: str) -> tuple[str, ...]:
    """Return the pytest arguments that select a module's tests. Raises KeyError if the module is not in the table."""
    return JUDGES[module] if module in JUDGES else JUDGES[str(Path(module).parent)]


def copy_of_the_source(module: str) -> Path:
    """Copy mqtool and its tests, and configure mutmut to mutate one module there. Keeps the results of earlier runs."""
    directory = ROOT / "build" / "mutants" / module.removesuffix(".py").replace("/", ".")
    for name in ("mqtool", "tests", "docs", "examples"):
        shutil.rmtree(directory / name, ignore_errors=True)
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, directory)
    settings = {
        "source_paths": ["mqtool"],
        "only_mutate": [module],
        "also_copy": ["README.md", "docs", "examples"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": judges_of(module),
        # Many mutants never confirm or deliver: with mutmut's default timeout, each would take half a minute.
        "timeout_multiplier": 8.0,
    }
    with (directory / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    return directory


def changes(mutated: str) -> dict[str, str]:
    """Return the change that each mutant in a mutated module makes, by the mutant's name without the module's.

    `mutmut show` would take a second for each.
    """
    lines, functions = mutated.splitlines(), {}
    for node in ast.walk(ast.parse(mutated)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name, _, mutant = node.name.rpartition("__mutmut_")
            body = lines[node.lineno - 1 : node.end_lineno]
            functions[name, mutant] = [line.replace(node.name, name) for line in body]
    return {
        f"{name}__mutmut_{mutant}": "\n".join([*unified_diff(functions[name, "orig"], body, lineterm="", n=1)][3:])
        for (name, mutant), body in functions.items()
        if mutant.isdecimal()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("module", nargs="?", help="module to mutate, such as mqtool/routing.py")
    parser.add_argument("--list", action="store_true", help="print all modules")
    options = parser.parse_args()
    if options.list:
        print(json.dumps([*modules()]))
        return
    if options.module not in {*modules()}:
        parser.error("MODULE must be one of:\n" + "\n".join(modules()))
    directory = copy_of_the_source(options.module)
    subprocess.run([MUTMUT, "run", "--max-children", "1"], cwd=directory, check=True)
    results = subprocess.run([MUTMUT, "results"], cwd=directory, check=True, capture_output=True, text=True).stdout
    change_of = changes((directory / "mutants" / options.module).read_text())
    for mutant, _, what in (line.strip().partition(": ") for line in results.splitlines()):
        if what in ("survived", "no tests"):
            print(f"\n{mutant}: {what}\n{change_of[mutant.rpartition('.')[2]]}")
    subprocess.run([MUTMUT, "export-cicd-stats"], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    stats = json.loads((directory / "mutants" / "mutmut-cicd-stats.json").read_text())
    total, killed = stats["total"], stats["killed"] + stats["timeout"]
    print(f"\n{options.module}: {killed} of {total} mutants killed ({killed / total:.0%}); the survivors are above")


if __name__ == "__main__":
    main()
