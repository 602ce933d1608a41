"""The image that `broker up --kind docker` builds: its arguments and its name."""

import hashlib
import re
from pathlib import Path

CONTEXT = Path(__file__).parent
#: The delayed-message plugin in the Dockerfile is for this version.
BASE = "rabbitmq:4.2.9-management"
_PLUGIN_VERSION = "4.2"


def base_of(wanted: str | None) -> str:
    """The image to build on; a version alone means the one on Docker Hub with management."""
    if wanted is None:
        return BASE
    return f"rabbitmq:{wanted}-management" if re.fullmatch(r"\d+(\.\d+)*", wanted) else wanted


def arguments(base: str) -> dict[str, str]:
    """The build arguments; other versions get no plugin."""
    version = re.match(r"\d+\.\d+", base.rpartition(":")[2])
    plugin = {} if version and version[0] == _PLUGIN_VERSION else {"PLUGIN_URL": ""}
    return {"BASE_IMAGE": base, **plugin}


def tag(base_id: str) -> str:
    """The name of the image that is built on another; it changes when its contents do."""
    key = hashlib.sha256(base_id.encode())
    for path in sorted(path for path in CONTEXT.iterdir() if path.is_file()):
        key.update(path.name.encode() + path.read_bytes())
    return f"mqtool-rabbitmq:{key.hexdigest()[:12]}"
