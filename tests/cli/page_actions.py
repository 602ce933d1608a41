"""Actions on the page of `mqtool ui`, without a browser."""

import json
import urllib.request
from typing import Any

from tests.cli.shell import Running


def run_action(ui: Running, action: str, **fields: str) -> list[dict[str, Any]]:
    """Run an action as the page does. Return its command, its output and its exit code, or an error."""
    url, _, secret = ui.stdout.strip().partition("#")
    wanted = json.dumps({"action": action, "fields": fields}).encode()
    request = urllib.request.Request(f"{url}run", wanted, {"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer]
