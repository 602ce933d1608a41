"""Who the broker says it is."""

import sys

from mqtool import __version__
from mqtool.broker.embedded.model.profile import Profile


def identity(profile: Profile) -> dict[str, str]:
    """Describe the broker. Clients go by product and version, so these are those it behaves like."""
    return {
        "cluster_name": "embedded@localhost",
        "copyright": "The mqtool founders",
        "information": f"mqtool {__version__} embedded broker: for learning, demonstrations and tests",
        "platform": f"Python {sys.version.split()[0]}",
        "product": "RabbitMQ",
        "version": profile.version,
    }
