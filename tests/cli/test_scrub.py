"""`recording scrub` as a filter: it needs no broker and passes lines on as they arrive; its output can be replayed."""

import json
from subprocess import PIPE

from tests.brokers import on_any_broker
from tests.cli.shell import Shell

LINE = {"timestamp": "2026-01-31T12:00:00.000Z", "exchange": "", "routing_key": "jobs", "queue": "jobs"}
LINES = "".join(
    json.dumps({**LINE, "headers": {"user": user}, "body": f"mail {user}"}) + "\n" for user in ("ann", "bob")
)


@on_any_broker
def test_a_scrubbed_recording_can_be_replayed(shell: Shell) -> None:
    """A recording that `recording scrub` has changed can still be replayed to the queue that it names. Two runs with
    the same --seed make the same replacements. With --keep, the named fields stay unchanged.
    """
    (shell.directory / "recording").write_text(LINES)
    shell.run("mqtool", "queue", "declare", "jobs")
    result = shell.script("mqtool recording scrub recording | tee scrubbed | mqtool recording replay")
    assert result.code == 0, result.stderr
    text = (shell.directory / "scrubbed").read_text()
    bodies = [json.loads(line)["body"] for line in text.splitlines()]
    assert shell.run("mqtool", "receive", "-q", "jobs", "--raw", "-c", "2").stdout.splitlines() == bodies
    assert "ann" not in text
    one, other = (shell.run("mqtool", "recording", "scrub", "--seed", "s", stdin=LINES).stdout for _ in range(2))
    assert one == other != text
    kept = shell.run("mqtool", "recording", "scrub", "--keep", "headers.user,headers.x", "--keep", "body", stdin=LINES)
    assert kept.stdout == LINES


def test_scrub_prints_each_line_as_it_arrives_and_loses_no_line_after_ctrl_c(lonely_shell: Shell) -> None:
    """`recording scrub` prints each line from a pipe as soon as the line arrives, while the pipe is still open. After
    Ctrl-C, it continues until the pipe is closed, so no line is lost.
    """
    running = lonely_shell.start("mqtool", "recording", "scrub", "--field", "headers", stdin=PIPE)
    assert running.process.stdin is not None
    first, second = LINES.splitlines(keepends=True)
    running.write(first.encode())
    running.wait_for_stdout("mail ann").interrupt()
    running.process.stdin.write(second.encode())
    running.process.stdin.close()
    result = running.wait()
    assert result.code == 0, result.stderr
    assert [json.loads(line)["body"] for line in result.stdout.splitlines()] == ["mail ann", "mail bob"]


def test_scrub_names_an_invalid_line(lonely_shell: Shell) -> None:
    """If a line is not JSON, `recording scrub` prints the lines before it, reports the number of the invalid line, and
    exits with 65. If --keep names an unknown field, the command exits with 2.
    """
    result = lonely_shell.run("mqtool", "recording", "scrub", stdin=f"{LINES}\nnot JSON\n{LINES}")
    assert (result.code, len(result.stdout.splitlines())) == (65, 2)
    assert result.stderr.startswith("mqtool: line 4, column 1, is not JSON")
    wrong = lonely_shell.run("mqtool", "recording", "scrub", "--keep", "routing-kye", stdin=LINES)
    assert (wrong.code, wrong.stdout) == (2, "")
    assert "hint: did you mean 'routing_key'?" in wrong.stderr


def test_scrub_counts_the_messages_in_which_it_could_not_look_for_a_field(lonely_shell: Shell) -> None:
    """In a body that is not JSON, `recording scrub --field` cannot look for a field, so it replaces the body as a
    whole. At the end, it prints in how many messages it has done so. It also names the fields for which it found
    nothing to replace.
    """
    result = lonely_shell.run("mqtool", "recording", "scrub", "--field", "body.email,headers.User", stdin=LINES)
    assert result.code == 0, result.stderr
    assert "ann" not in json.loads(result.stdout.splitlines()[0])["body"]
    assert result.stderr == (
        "warning: replaced as a whole in 2 messages: text or bytes in which fields cannot be found, such as a body "
        "that is not JSON\n"
        "warning: found no value to change in body.email, headers.User: names must match exactly, in upper and lower "
        "case, and some values always stay\n"
    )


def test_scrub_warns_of_a_misspelled_field_even_if_one_body_is_not_json(lonely_shell: Shell) -> None:
    """If no message body has the field that is given with `recording scrub --field`, for example because it is
    misspelled, the command warns that it has found nothing to change in this field. It does so even if it has replaced
    one body as a whole because this body is not JSON, or if a later line of the recording is invalid.
    """
    lines = '{"body":"{\\"email\\":\\"alice@x.org\\"}"}\n{"body":"ping"}\n'
    warning = "warning: found no value to change in body.emial: "
    result = lonely_shell.run("mqtool", "recording", "scrub", "--field", "body.emial", stdin=lines)
    assert (result.code, warning in result.stderr) == (0, True), result.stderr
    wrong = lonely_shell.run("mqtool", "recording", "scrub", "--field", "body.emial", stdin=f"{lines}not JSON\n")
    assert (wrong.code, len(wrong.stdout.splitlines())) == (65, 2)
    assert warning in wrong.stderr
    assert "replaced as a whole in 1 message" in wrong.stderr
    assert "mqtool: line 3, column 1, is not JSON" in wrong.stderr
