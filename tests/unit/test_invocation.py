"""What the parts of one run of mqtool share."""

import pytest

from mqtool.cli.display import output
from mqtool.cli.invocation import Invocation, current, running


def test_a_quiet_run_prints_data_and_errors_only(capfd: pytest.CaptureFixture[str]) -> None:
    """Each run has settings of its own, which end with it."""
    with running(Invocation(quiet=True)):
        output.notice("a notice")
        output.warning("a warning")
        output.error("an error")
        output.show("data")
    output.notice("afterwards")
    assert capfd.readouterr() == ("data\n", "mqtool: an error\nafterwards\n")


def test_runs_do_not_see_each_other() -> None:
    """A run within another one, as in a test, starts with nothing named and nothing asked for."""
    with running(Invocation(output_name="outer")):
        with running(Invocation()) as inner:
            inner.signal = 15
            assert (current().output_name, current().signal) == ("standard output", 15)
        assert (current().output_name, current().signal) == ("outer", None)
