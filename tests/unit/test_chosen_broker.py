"""Which broker a command uses, which settings belong to it, and which brokers of `broker up` still run."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mqtool.address import Address, TlsFiles, parse_address
from mqtool.broker import state
from mqtool.broker.background import birth
from mqtool.broker.state import Started
from mqtool.cli.chosen_broker import (
    Choice,
    choose,
    is_same_node,
    perhaps_running_at,
    read_password,
    resolve_addresses,
    running_at,
)
from mqtool.cli.contexts import Context, Protocol
from mqtool.errors import UsageError
from tests.brokers import has_ipv6

API = "http://api:15672"
CONTEXTS = """
[contexts.prod]
url = "amqp://prod"
management = "http://prod:15672"
protected = true

[contexts.staging]
url = "amqp://staging"
"""
#: A process that has ended: nobody else can have started at that time.
ENDED = "long ago"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with contexts, but without a broker in use; nothing in the environment names a broker."""
    for name in ("MQTOOL_URL", "AMQP_URL", "MQTOOL_CONTEXT", "MQTOOL_MANAGEMENT_URL", "MQTOOL_STREAM_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    write_contexts(tmp_path, CONTEXTS)
    return tmp_path


def write_contexts(home: Path, text: str) -> None:
    (home / "mqtool").mkdir(exist_ok=True)
    (home / "mqtool" / "config.toml").write_text(text)


def use(home: Path, name: str) -> None:
    write_contexts(home, f'use = "{name}"\n{CONTEXTS}')


def record(url: str, name: str = "default", **more: Any) -> Started:
    """Record a broker as `broker up` does; its process is this one, unless another is given."""
    own = {"kind": "embedded", "pid": os.getpid(), "born": birth(os.getpid()), "details": {}}
    started = Started(name, url=url, directory=str(state.made_directory(name)), **(own | more))
    state.save(started)
    return started


def record_cluster(*processes: tuple[int, str]) -> Started:
    """Record a cluster of private nodes at the ports 1, 2 and so on, with these processes."""
    members = [{"process": [*process]} for process in processes]
    url = ",".join(f"amqp://127.0.0.1:{port}" for port in range(1, len(processes) + 1))
    return record(url, kind="node", pid=0, born="", nodes=len(processes), details={"members": members})


def record_in_docker(url: str, name: str = "default") -> Started:
    return record(url, name, kind="docker", pid=0, born="", details={"containers": [f"mqtool-{name}"]})


def typed(url: str) -> Choice:
    return choose(url, typed={"url"})


@contextmanager
def stdin_from(file: int) -> Iterator[None]:
    """Read stdin from an open file inside the `with` block."""
    before = os.dup(0)
    os.dup2(file, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


@pytest.fixture
def choices(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Callable[[], object], str, str]]:
    """The ways to name a broker, in ascending order of precedence, each with the URL and the reason of the choice."""
    return [
        (lambda: None, "amqp://localhost", "the default"),
        (lambda: record("amqp://up"), "amqp://up", "from 'mqtool broker up'"),
        (lambda: use(home, "staging"), "amqp://staging", "from context 'staging', which is in use"),
        (lambda: monkeypatch.setenv("MQTOOL_CONTEXT", "prod"), "amqp://prod", "from MQTOOL_CONTEXT=prod"),
        (lambda: monkeypatch.setenv("AMQP_URL", "amqp://shared"), "amqp://shared", "from AMQP_URL"),
        (lambda: monkeypatch.setenv("MQTOOL_URL", "amqp://own"), "amqp://own", "from MQTOOL_URL"),
    ]


def test_a_command_uses_the_broker_that_is_named_most_specifically(
    choices: list[tuple[Callable[[], object], str, str]],
) -> None:
    """A command uses the first of these that is set: --url, --context, MQTOOL_URL, AMQP_URL, MQTOOL_CONTEXT, the
    context in use, the broker that `broker up` started, and finally localhost. mqtool also remembers where the URL
    comes from, for example "from --url", so that `broker status` can show it.
    """
    for name, url, reason in choices:
        name()
        found = choose()
        assert (found.url, found.reason, found.is_typed) == (url, reason, False)
    of_option = choose(context="staging", typed={"context"})
    assert (of_option.url, of_option.reason, of_option.is_typed) == ("amqp://staging", "from --context staging", True)
    both = choose("amqp://typed", "staging", typed={"url", "context"})
    assert both == Choice("amqp://typed", "from --url", is_typed=True)


def test_a_broker_from_an_option_a_variable_or_a_context_counts_as_named_by_the_user(
    home: Path, choices: list[tuple[Callable[[], object], str, str]]
) -> None:
    """A broker counts as named by the user if it comes from an option, an environment variable or a context. The
    default, localhost, does not count as named by the user, and neither does the broker that `broker up` started.
    """
    named = []
    for name, _, _ in choices:
        name()
        named.append(choose().is_named)
    assert named == [False, False, True, True, True, True]
    assert choose("amqp://typed", typed={"url"}).is_named
    assert choose(context="staging", typed={"context"}).is_named


@pytest.mark.parametrize("variable", ["MQTOOL_URL", "AMQP_URL", "MQTOOL_CONTEXT"])
def test_an_empty_environment_variable_names_no_broker(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the environment variable MQTOOL_URL, AMQP_URL or MQTOOL_CONTEXT is empty, mqtool behaves as if the variable
    were not set.
    """
    monkeypatch.setenv(variable, "")
    assert choose().reason == "the default"


def test_only_options_on_the_command_line_override_the_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options --url and --context override MQTOOL_URL only if the user has typed them on the command line, not if
    their values come from the environment.
    """
    monkeypatch.setenv("MQTOOL_URL", "amqp://own")
    assert choose("amqp://x", "prod", typed=()) == choose("amqp://x", "prod", typed={"queue"}) == choose()
    assert choose("amqp://x", "prod", typed={"url"}).url == "amqp://x"
    assert choose("amqp://x", "prod", typed={"context"}).url == "amqp://prod"


def test_the_url_option_cannot_be_combined_with_a_protected_or_unknown_context() -> None:
    """If --url and --context are combined, and the context is protected, UsageError is raised, because the command
    would otherwise not be protected. If the context is unknown, UsageError is raised, too.
    """
    with pytest.raises(UsageError) as refused:
        choose("amqp://typed", "prod", typed={"url", "context"})
    assert str(refused.value) == "--url cannot be combined with the protected context 'prod'"
    assert refused.value.hint == "use only one of them"
    with pytest.raises(UsageError, match=r"^unknown context 'prd'$"):
        choose("amqp://typed", "prd", typed={"url", "context"})


@pytest.mark.parametrize("how", ["--context", "MQTOOL_CONTEXT", "context use"])
def test_the_error_about_an_unknown_context_says_where_its_name_comes_from(
    how: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no context with the given name, choosing a broker raises UsageError. Unless the user typed the
    name, the error begins with the source of the name: MQTOOL_CONTEXT or the path of the file of contexts.
    """
    if how == "MQTOOL_CONTEXT":
        monkeypatch.setenv(how, "gone")
    elif how == "context use":
        use(home, "gone")
    source = {"--context": "", "MQTOOL_CONTEXT": "MQTOOL_CONTEXT: "}.get(how, f"{home}/mqtool/config.toml: ")
    with pytest.raises(UsageError) as refused:
        choose(context="gone", typed={"context"} if how == "--context" else ())
    assert str(refused.value) == f"{source}unknown context 'gone'"


@pytest.mark.parametrize("how", ["--context", "MQTOOL_CONTEXT", "context use"])
def test_a_context_protects_its_broker_however_the_context_was_chosen(
    how: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protected context protects its broker whether the context was chosen with --context, MQTOOL_CONTEXT or
    `context use`. A broker of an unprotected context, or one that is named with --url, is not protected.
    """
    for name, protected in (("prod", "prod"), ("staging", None)):
        if how == "MQTOOL_CONTEXT":
            monkeypatch.setenv(how, name)
        elif how == "context use":
            use(home, name)
        assert choose(context=name, typed={"context"} if how == "--context" else ()).protected == protected
    assert typed("amqp://prod").protected is None


def test_a_killed_broker_is_not_treated_as_the_one_that_broker_up_started() -> None:
    """A broker counts as started by `broker up` while its process is running. After the process has ended, the broker
    no longer counts as started, because another broker may be listening on its port. A broker in Docker counts as
    started, although mqtool knows no process of this broker.
    """
    assert not choose().is_started
    record("amqp://127.0.0.1:1")
    assert choose().is_started
    record("amqp://127.0.0.1:1", born=ENDED)
    assert not choose().is_started
    assert choose().url == "amqp://127.0.0.1:1"
    record_in_docker("amqp://127.0.0.1:1")
    assert choose().is_started


def test_the_management_option_overrides_the_variable_and_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --management URL, a command uses the management API at this URL. Otherwise, it uses the management API of
    the broker's context or, if the broker comes from no context, the one in MQTOOL_MANAGEMENT_URL. If this context or
    variable sets no URL, mqtool looks for the management API itself.
    """
    assert choose().management(None) is None
    assert choose().management("http://typed") == "http://typed"
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", API)
    assert choose().management(None) == choose().management("") == API
    assert choose().management("http://typed") == "http://typed"
    prod = choose(context="prod", typed={"context"})
    assert prod.management(None) == "http://prod:15672"
    assert prod.management("http://typed") == "http://typed"
    assert choose(context="staging", typed={"context"}).management(None) is None
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", "")
    assert choose().management(None) is None


@pytest.mark.parametrize(
    ("usual", "url", "belongs"),
    [
        ({}, "amqp://localhost", True),
        ({}, "amqp://ann:secret@127.0.0.1:5672/shop", True),
        ({}, "amqp://localhost:5673", False),
        ({}, "amqp://other", False),
        ({"MQTOOL_URL": "amqp://one"}, "amqp://one/shop", True),
        ({"MQTOOL_URL": "amqp://one"}, "amqp://localhost", False),
        ({"AMQP_URL": "amqp://one"}, "amqp://one", True),
        ({"AMQP_URL": "amqp://one"}, "amqp://two", False),
        ({"MQTOOL_URL": "amqp://one", "AMQP_URL": "amqp://two"}, "amqp://two", False),
        ({"MQTOOL_URL": "amqp://one,amqp://two"}, "amqp://two", True),
        ({"MQTOOL_URL": "amqp://two"}, "amqp://one,amqp://two", True),
        ({"MQTOOL_URL": "amqp://one,amqp://two"}, "amqp://three,amqp://four", False),
        ({"MQTOOL_CONTEXT": "staging"}, "amqp://staging", False),
        ({"MQTOOL_CONTEXT": "gone"}, "amqp://localhost", False),
        ({"MQTOOL_URL": "http://one"}, "amqp://one", False),
        ({"MQTOOL_URL": "amqp://one"}, "http://one", False),
    ],
)
def test_the_management_url_variable_is_ignored_if_the_url_option_names_another_broker(
    usual: Mapping[str, str], url: str, monkeypatch: pytest.MonkeyPatch, *, belongs: bool
) -> None:
    """MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT belong to the broker in MQTOOL_URL or AMQP_URL or, if neither is
    set, to the one at localhost. A command with --url uses them only if --url names this broker or one of its nodes.
    Otherwise, another broker could receive a password or a change that is not meant for it.
    """
    for name, value in usual.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", API)
    assert typed(url).management(None) == (API if belongs else None)
    assert typed(url).has_variables() == belongs


def test_commands_ignore_the_management_url_variable_after_broker_up_or_with_a_context(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a context is in use, or a broker that `broker up` started is running, commands do not use
    MQTOOL_MANAGEMENT_URL, with or without --url. If the broker that `broker up` started was killed, commands use
    MQTOOL_MANAGEMENT_URL for a broker at the same address.
    """
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", API)
    record("amqp://127.0.0.1:1")
    assert choose().management(None) is typed("amqp://127.0.0.1:1").management(None) is None
    assert typed("amqp://localhost").management(None) is None
    record("amqp://127.0.0.1:1", born=ENDED)
    assert choose().management(None) == typed("amqp://localhost:1").management(None) == API
    assert typed("amqp://localhost").management(None) is None
    use(home, "staging")
    assert choose().management(None) is typed("amqp://staging").management(None) is None


@pytest.mark.parametrize("file", ["config.toml", "brokers/default/broker.json"])
def test_if_a_file_is_damaged_a_command_with_url_ignores_the_management_url_variable(
    file: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file of contexts or the state file of a broker is damaged, a command with --url can still use the broker
    at this URL, but ignores MQTOOL_MANAGEMENT_URL. This variable may belong to a broker that the damaged file names.
    """
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", API)
    state.made_directory("default")
    (home / "mqtool" / file).write_text("damaged")
    assert typed("amqp://localhost").management(None) is None


def test_each_option_for_a_tls_file_overrides_the_corresponding_file_of_the_context() -> None:
    """A command uses the TLS files of its context, except those that an option replaces. Without a context, it uses
    only the files that the options name.
    """
    of_context = TlsFiles(Path("ca"), Path("cert"), Path("key"))
    context = Context("it", "amqps://it", tls_ca=Path("ca"), tls_cert=Path("cert"), tls_key=Path("key"))
    choice = Choice("amqps://it", "", context)
    assert choice.tls(TlsFiles()) == of_context
    for name in TlsFiles._fields:
        given = TlsFiles(**{name: Path("own")})
        assert choice.tls(given) == of_context._replace(**{name: Path("own")})
        assert Choice("amqps://it", "").tls(given) == given


def test_the_protocol_of_a_context_applies_to_its_commands() -> None:
    """If the context of a command names a protocol, the command uses it, even if the caller passes another protocol.
    Otherwise, it uses the protocol that the caller passes. The default is AMQP 0-9-1.
    """
    of_context = Choice("amqp://it", "", Context("it", "amqp://it", protocol="amqp1.0"))
    assert of_context.protocol(None) is of_context.protocol(Protocol.AMQP_0_9_1) is Protocol.AMQP_1_0
    for other in (Choice("amqp://it", ""), Choice("amqp://it", "", Context("it", "amqp://it"))):
        assert other.protocol(None) is Protocol.AMQP_0_9_1
        assert other.protocol(Protocol.AMQP_1_0) is Protocol.AMQP_1_0


def test_the_description_of_a_broker_has_all_its_nodes_but_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """`broker status` describes the broker with the addresses of all its nodes and the source of these addresses,
    such as MQTOOL_URL. It does not show the password.
    """
    monkeypatch.setenv("MQTOOL_URL", "amqp://ann:secret@one,amqp://ann:secret@two:5673/shop")
    assert choose().description() == "amqp://ann@one:5672, amqp://ann@two:5673/shop, from MQTOOL_URL"


@pytest.mark.parametrize("source", ["--url", "MQTOOL_URL", "AMQP_URL", "context"])
def test_the_error_about_an_invalid_url_says_where_the_url_comes_from(
    source: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a broker's URL is not valid, the error has a hint, and begins with the name of the environment variable or
    the context that the URL comes from. If the user typed the URL on the command line, the error begins with neither.
    """
    if source == "context":
        write_contexts(home, 'use = "it"\n[contexts.it]\nurl = "http://x"\n')
    elif source != "--url":
        monkeypatch.setenv(source, "http://x")
    where = {"--url": "", "context": "context 'it': "}.get(source, f"{source}: ")
    with pytest.raises(UsageError) as plain:
        parse_address("http://x")
    with pytest.raises(UsageError) as refused:
        (typed("http://x") if source == "--url" else choose()).addresses()
    assert (str(refused.value), refused.value.hint) == (f"{where}{plain.value}", plain.value.hint)


def test_the_options_user_and_vhost_apply_to_all_nodes() -> None:
    """--user and --vhost replace the user and the virtual host in the URLs of all nodes. Without these options, each
    node has the user and the virtual host of its own URL.
    """
    choice = Choice("amqp://ann:secret@one/shop,amqp://two", "")
    assert resolve_addresses(choice) == choice.addresses()
    first, second = resolve_addresses(choice, user="bob", vhost="v")
    assert first == Address("one", 5672, "v", "bob", "secret", names_user=True)
    assert second == Address("two", 5672, "v", "bob", "guest", names_user=True)
    first, second = resolve_addresses(choice, vhost="v")
    assert (first.user, first.virtual_host, first.names_user) == ("ann", "v", True)
    assert (second.user, second.virtual_host, second.names_user) == ("guest", "v", False)


def test_with_a_password_file_mqtool_logs_in_with_the_password(home: Path) -> None:
    """With --password-file, mqtool logs in with the password in the file instead of the one in the URL. It does not
    log in with a client certificate, even if the URL names no user.
    """
    (home / "password").write_text("from file\n")
    [address] = resolve_addresses(Choice("amqps://one", ""), password_file=home / "password")
    assert (address.user, address.password, address.names_user) == ("guest", "from file", True)


def test_a_password_file_overrides_the_password_command_of_a_context(home: Path) -> None:
    """The password command of a context provides the password. With --password-file, mqtool does not run this
    command.
    """
    mark = home / "was-run"
    context = Context("it", "amqp://ann:old@it", password_command=f"touch {mark} && echo from command")
    choice = Choice(context.url, "", context)
    (home / "password").write_text("from file")
    assert [each.password for each in resolve_addresses(choice, password_file=home / "password")] == ["from file"]
    assert not mark.exists()
    assert [each.password for each in resolve_addresses(choice)] == ["from command"]
    without = Choice(context.url, "", context._replace(password_command=None))
    assert [each.password for each in resolve_addresses(without)] == ["old"]


@pytest.mark.parametrize("what", ["user", "vhost"])
@pytest.mark.parametrize(("name", "size"), [("", 0), ("x" * 256, 256), ("é" * 128, 256)])
def test_a_user_or_vhost_name_that_is_empty_or_too_long_raises_usage_error(what: str, name: str, size: int) -> None:
    """If the name of a user or a virtual host is empty or longer than 255 bytes, UsageError is raised. The error says
    how many bytes the name has.
    """
    with pytest.raises(UsageError) as refused:
        resolve_addresses(Choice("amqp://one", ""), **{what: name})
    assert str(refused.value) == f"the {what} name is {size} bytes long"
    assert refused.value.hint == "use 1 to 255 bytes"
    for valid in ("x", "x" * 255):
        [address] = resolve_addresses(Choice("amqp://one", ""), **{what: valid})
        assert valid in (address.user, address.virtual_host)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("amqp://one", "amqp://ann:secret@one/shop", True),
        ("amqp://localhost", "amqp://127.0.0.1", True),
        ("amqp://one:1", "amqp://one:2", False),
        ("amqp://one", "amqp://two", False),
        ("amqp://localhost", "amqp://one", False),
        ("amqp://one", "amqp://127.0.0.1", False),
        ("amqp://localhost:1", "amqp://127.0.0.1:2", False),
        ("amqp://127.0.0.1", "amqp://127.0.0.2", False),
    ],
)
def test_addresses_with_the_same_host_and_port_are_those_of_the_same_node(
    one: str, other: str, *, is_same: bool
) -> None:
    """Two addresses belong to the same node if their hosts and ports are equal, whatever their users and virtual
    hosts are. localhost and 127.0.0.1 count as the same host.
    """
    assert is_same_node(parse_address(one), parse_address(other)) == is_same
    assert is_same_node(parse_address(other), parse_address(one)) == is_same


def test_a_broker_that_broker_up_started_is_found_at_its_address_while_its_process_runs() -> None:
    """While the process of a broker that `broker up` has started is running, mqtool finds this broker by its address.
    After the process has ended, mqtool finds no broker, because another one may be listening at the address.
    """
    address = parse_address("amqp://localhost:1")
    assert running_at(address) is None
    record("amqp://127.0.0.1:1", "a", born=ENDED)
    assert running_at(address) is None
    running = record("amqp://127.0.0.1:1", "b")
    record("amqp://127.0.0.1:2", "c")
    assert running_at(address) == running
    assert running_at(parse_address("amqp://localhost:3")) is None
    assert perhaps_running_at(address) == []


def test_a_broker_that_broker_up_started_is_not_found_at_localhost_if_another_listens_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`broker up` starts brokers that listen on 127.0.0.1. If localhost also stands for ::1, and another broker listens
    there on the same port, connections to localhost reach the other broker. mqtool then does not take the broker at
    localhost for the one that `broker up` started.
    """
    if not has_ipv6():
        pytest.skip("there is no IPv6 here")
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        started = record(f"amqp://127.0.0.1:{port}")
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *asked: [both[1], both[0]] if asked[:2] == ("localhost", port) else []
        )
        both = [
            (family, socket.SOCK_STREAM, 6, "", where)
            for family, where in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port, 0, 0)))
        ]
        assert running_at(parse_address(f"amqp://localhost:{port}")) == started
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            assert running_at(parse_address(f"amqp://localhost:{port}")) is None
            assert running_at(parse_address(f"amqp://127.0.0.1:{port}")) == started


def test_a_cluster_that_broker_up_started_is_found_only_at_the_addresses_of_running_nodes() -> None:
    """If one node of a cluster that `broker up` started is running, and the other nodes were killed, mqtool finds the
    cluster only at the address of the running node.
    """
    cluster = record_cluster((1, ENDED), (os.getpid(), birth(os.getpid())), (1, ENDED))
    found = [running_at(parse_address(f"amqp://localhost:{port}")) for port in (1, 2, 3)]
    assert found == [None, cluster, None]
    assert [perhaps_running_at(parse_address(f"amqp://localhost:{port}")) for port in (1, 2, 3)] == [[], [], []]


def test_a_broker_in_docker_may_be_running_if_the_docker_daemon_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If mqtool cannot ask the Docker daemon, it does not know whether a broker that `broker up` started in Docker is
    still running. It then lists this broker among those that may be running at the broker's address, but does not treat
    it as running.
    """
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    in_docker = record_in_docker("amqp://127.0.0.1:1", "in-docker")
    record("amqp://127.0.0.1:1", "killed", born=ENDED)
    address = parse_address("amqp://localhost:1")
    assert running_at(address) is None
    assert perhaps_running_at(address) == [in_docker]
    assert perhaps_running_at(parse_address("amqp://localhost:2")) == []
    running = record("amqp://127.0.0.1:1", "now-running")
    assert running_at(address) == running


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"secret", "secret"), (b"secret\n", "secret"), (b" a b \r\n", " a b "), (b"", ""), ("éX\n".encode(), "éX")],
)
def test_a_password_is_the_content_of_its_file_without_the_line_break_at_the_end(
    content: bytes, password: str, home: Path
) -> None:
    """A password is read from a file, or from stdin if the file is "-". A line break at the end is not part of the
    password, but spaces are.
    """
    (home / "password").write_bytes(content)
    assert read_password(home / "password") == password
    with (home / "password").open("rb") as file, stdin_from(file.fileno()):
        assert read_password(Path("-")) == password


@pytest.mark.parametrize("name", ["missing", "binary", "-"])
def test_the_error_about_a_password_file_says_why_it_cannot_be_read(name: str, home: Path) -> None:
    """If a password file does not exist, or if the file or stdin is not text, reading the password raises UsageError.
    The error contains the name of the file and the reason, but not the content.
    """
    (home / "binary").write_bytes(b"\xff")
    path = Path("-") if name == "-" else home / name
    reason = "No such file or directory" if name == "missing" else "it is not text"
    with (home / "binary").open("rb") as file, stdin_from(file.fileno()), pytest.raises(UsageError) as refused:
        read_password(path)
    assert str(refused.value) == f"cannot read the password file {path}: {reason}"
