"""Pagination of the lists in the management API."""

import asyncio
from types import SimpleNamespace
from typing import Any

from mqtool.broker.embedded.http import _listed
from mqtool.broker.embedded.http.route_table import Listed


def test_only_the_data_of_queues_on_the_requested_page_is_collected() -> None:
    """If a client of the management API requests a page that contains three of 1,000 queues, the embedded broker
    collects data only about these three.
    """
    queues = [SimpleNamespace(vhost="/", name=f"q{number:03}") for number in reversed(range(1000))]
    described: list[str] = []

    def view(queue: Any) -> dict[str, Any]:
        described.append(queue.name)
        return {"name": queue.name, "messages": 1, "type": "classic"}

    query = {"page": "2", "page_size": "3", "name": "q1", "columns": "name"}
    page = asyncio.run(_listed(Listed(queues, view), query))
    assert [item["name"] for item in page["items"]] == described == ["q103", "q104", "q105"]
    assert (page["total_count"], page["filtered_count"], page["page_count"]) == (1000, 100, 34)
