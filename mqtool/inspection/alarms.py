"""The alarms of a broker's nodes."""

from mqtool.errors import AccessRefused
from mqtool.management import Management


def alarms(api: Management) -> str:
    """Describe the memory and disk alarms of the broker's nodes; "" if there are none, or the user may not see them."""
    try:
        told = list(api.items("nodes", ("name", "mem_alarm", "disk_free_alarm")))
    except AccessRefused:
        return ""
    kinds = (("mem_alarm", "memory alarm"), ("disk_free_alarm", "disk alarm"))
    found = [f"{said} on {node['name']}" for node in told for name, said in kinds if node.get(name)]
    return f"{', '.join(found)}: publishers are blocked" if found else ""
