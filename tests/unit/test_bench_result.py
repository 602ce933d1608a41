"""The result of a `bench` run: as JSON, with which `bench compare` compares runs, and as charts."""

import json
import re
from typing import Any

from mqtool.benching import charts
from mqtool.benching.plan import BenchPlan
from mqtool.benching.result import Result, Snapshot
from mqtool.benching.tally import Latencies


def latencies(*microseconds: int) -> Latencies:
    found = Latencies()
    found.record([each * 1000 for each in microseconds])
    return found


def result(**more: Any) -> Result:
    """A result in which each figure has a value of its own."""
    figures: dict[str, Any] = {
        "plan": BenchPlan(), "broker": "RabbitMQ <4>", "seconds": 1.5, "confirm": latencies(1000),
        "deliver": latencies(2000), "rates": (11.0, 12.0, 13.0), "published": 14, "confirmed": 15, "received": 16,
        "nacked": 17, "unconfirmed": 18, "unsent": 19, "lost": 20, "duplicated": 21, "redelivered": 22,
        "out_of_order": 23, "others": 24, "reconnects": 25, "gap": (26.0, 27.0), "busiest": (0.28, 0.29),
        "series": [Snapshot(0.0, 0, 0, 0), Snapshot(2.0, 200, 100, 50)],
    }  # fmt: skip
    return Result(**{**figures, **more})


def test_the_json_of_a_result_has_all_its_figures() -> None:
    """The result of a `bench` run as JSON contains each figure under its name, percentiles in milliseconds, and the
    histograms of the latencies in microseconds. Unknown figures, such as the CPU time of a remote broker, are null.
    """
    found = result(confirm=latencies(*[1000] * 98, 1500, 1700)).as_json()
    confirm = found.pop("confirm")
    assert (confirm["p50"], confirm["p99"], confirm["max"]) == (1.0, 1.5, 1.7)
    assert confirm["histogram"] == [(1000, 98), (1500, 1), (1700, 1)]
    assert (found.pop("deliver")["max"], found["series"]) == (2.0, [[0.0, 0, 0, 0], [2.0, 200, 100, 50]])
    del found["series"]
    assert found == {
        "run": "quorum queue, 1 publisher, 1 consumer, 100 bytes, persistent, up to 1,000 in flight",
        "broker": "RabbitMQ <4>", "seconds": 1.5, "rates": {"published": 11.0, "confirmed": 12.0, "received": 13.0},
        "published": 14, "confirmed": 15, "received": 16, "nacked": 17, "unconfirmed": 18, "unsent": 19, "lost": 20,
        "duplicated": 21, "redelivered": 22, "out_of_order": 23, "others": 24, "reconnects": 25,
        "gap": {"confirm": 26.0, "deliver": 27.0}, "client_cpu": 0.28, "client_cpu_wait": 0.29, "waiting": 0,
        "broker_cpu": None, "broker_memory": None, "stopped": False,
    }  # fmt: skip
    known = result(waiting=5, broker_cpu=0.5, broker_memory=6, stopped=True).as_json()
    assert [known[name] for name in ("waiting", "broker_cpu", "broker_memory", "stopped")] == [5, 0.5, 6, True]
    json.dumps(known)


def lines_of(image: str) -> list[str]:
    return re.findall(r'<polyline points="([^"]*)"', image)


def labels_of(image: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", image)


def test_the_charts_show_latencies_by_percentile_and_messages_per_second() -> None:
    """The first chart of a `bench` result shows the latencies of confirms and of deliveries by percentile. The second
    one shows the messages published, confirmed and received per second. The axes of both charts fit the values.
    """
    image = charts.svg(result())
    assert lines_of(image) == ["740.0,280.0", "740.0,207.8", "740.0,40.0", "740.0,160.0", "740.0,220.0"]
    assert labels_of(image) == [
        "Latency by percentile, in ms", "1", "10", "p0", "p90", "p99", "p99.9", "p99.99", "p99.999", "confirmed",
        "delivered", "Messages per second", "0", "20", "40", "60", "80", "100", "0 s", "0.5 s", "1 s", "1.5 s", "2 s",
        "published", "confirmed", "received",
    ]  # fmt: skip


def test_both_charts_are_in_one_image_one_below_the_other() -> None:
    """The image of a `bench` result contains both charts, one below the other. Each chart has a legend with the names
    of its lines side by side, in the colours of the lines.
    """
    image = charts.svg(result())
    assert 'viewBox="0 0 760 640" width="760" height="640"' in image
    assert re.findall(r"translate\(0,(\d+)\)", image) == ["0", "320"]
    names = re.findall(r'<text x="(\d+)" y="24" fill="(#\w+)">(\w+)<', image)
    assert [(x, name) for x, _, name in names] == [
        ("540", "confirmed"), ("640", "delivered"), ("440", "published"), ("540", "confirmed"), ("640", "received"),
    ]  # fmt: skip
    assert [colour for _, colour, _ in names] == re.findall(r'fill="none" stroke="(#\w+)"', image)


def test_latencies_of_less_than_a_millisecond_are_in_the_chart() -> None:
    """In the latency chart of a `bench` result, the latency axis is logarithmic, and begins at or below the lowest
    latency, even if that is less than 1 ms. On the percentile axis, 0, 90, 99, 99.9 and so on are evenly spaced.
    """
    image = charts.svg(result(confirm=latencies(*[100] * 9, 1000), deliver=latencies(*[100] * 99, 1000)))
    assert lines_of(image)[:2] == ["190.0,280.0 740.0,40.0", "300.0,280.0 740.0,40.0"]
    assert labels_of(image)[1:4] == ["0.1", "1", "p0"]


def test_rates_are_calculated_between_the_snapshots_of_a_run() -> None:
    """While `bench` runs, it takes snapshots of the numbers of messages. Each point of the throughput chart is the rate
    of messages per second between two snapshots. If two snapshots have the same time, the second one is left out.
    """
    series = [Snapshot(0.0, 0, 0, 0), Snapshot(1.0, 100, 0, 0), Snapshot(1.0, 105, 0, 0), Snapshot(3.0, 365, 0, 0)]
    image = charts.svg(result(series=series))
    assert lines_of(image)[2] == "300.0,120.0 740.0,72.0"
    assert labels_of(image)[12:16] == ["0", "50", "100", "150"]


def test_the_charts_of_a_run_without_messages_have_no_lines() -> None:
    """If no message of a `bench` run was confirmed or delivered, the charts of the result contain no lines."""
    image = charts.svg(result(confirm=Latencies(), deliver=Latencies(), series=[]))
    assert lines_of(image) == [""] * 5


def test_the_page_of_a_result_shows_the_report_and_the_charts() -> None:
    """The HTML page of a `bench` result contains the lines of the report and the charts. Its title names the broker and
    the settings of the run.
    """
    page = charts.html(result(), ["1 < 2", "3"])
    title = "RabbitMQ &lt;4&gt;: quorum queue, 1 publisher, 1 consumer, 100 bytes, persistent, up to 1,000 in flight"
    assert f"<title>{title}</title>" in page
    assert "<pre>1 &lt; 2\n3</pre>" in page
    assert charts.svg(result()) in page
