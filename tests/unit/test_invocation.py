"""The settings of one run of mqtool."""

import pytest

from mqtool.cli.display import output
from mqtool.cli.invocation import Invocation, current, running


def test_a_quiet_run_prints_only_data_and_errors(capfd: pytest.CaptureFixture[str]) -> None:
    """With --quiet, mqtool prints data and errors, but neither notices nor warnings."""
    with running(Invocation(quiet=True)):
        output.notice("a notice")
        output.warning("a warning")
        output.error("an error")
        output.show("data")
    output.notice("afterwards")
    assert capfd.readouterr() == ("data\n", "mqtool: an error\nafterwards\n")


def test_a_command_run_by_another_command_has_its_own_settings() -> None:
    """If an mqtool command runs another command, the inner command starts with default settings, and the outer
    command's settings do not change.
    """
    with running(Invocation(output_name="outer")):
        with running(Invocation()) as inner:
            inner.signal = 15
            assert (current().output_name, current().signal) == ("standard output", 15)
        assert (current().output_name, current().signal) == ("outer", None)
