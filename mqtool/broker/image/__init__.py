"""The image that `broker up --kind docker` builds: what its Dockerfile takes, and what it is called."""

import hashlib
import re
from pathlib import Path

CONTEXT = Path(__file__).parent
#: The one that the delayed-message plugin in the Dockerfile goes with.
BASE = "rabbitmq:4.2.9-management"
_PLUGIN_GOES_WITH = "4.2"


def base_of(wanted: str | None) -> str:
    """The image to build upon; a version alone is that of Docker Hub, with management."""
    if wanted is None:
        return BASE
    return f"rabbitmq:{wanted}-management" if re.fullmatch(r"\d+(\.\d+)*", wanted) else wanted


def arguments(base: str) -> dict[str, str]:
    """The build arguments; the plugin is left out where the version is not the one that it goes with."""
    version = re.match(r"\d+\.\d+", base.rpartition(":")[2])
    plugin = {} if version and version[0] == _PLUGIN_GOES_WITH else {"PLUGIN_URL": ""}
    return {"BASE_IMAGE": base, **plugin}


def tag(base_id: str) -> str:
    """What to call the image that is built upon another; it changes with all that goes into it."""
    key = hashlib.sha256(base_id.encode())
    for path in sorted(path for path in CONTEXT.iterdir() if path.is_file()):
        key.update(path.name.encode() + path.read_bytes())
    return f"mqtool-rabbitmq:{key.hexdigest()[:12]}"
