"""Record conversations with the RabbitMQ of MQTOOL_TEST_URL, for `make record`.

python -m tests.conversations VERSION [SUBJECT…]
"""

import json
import sys

from tests.brokers import from_environment
from tests.conversations.conversation import SUBJECTS, recording
from tests.conversations.places import heard_live

if __name__ == "__main__":
    broker, (version, *subjects) = from_environment(), sys.argv[1:]
    assert broker is not None, "MQTOOL_TEST_URL is not set"
    for subject in subjects or SUBJECTS:
        if lines := [json.dumps(heard._asdict()) + "\n" for heard in heard_live(broker, subject, version)]:
            recording(subject, version).write_text("".join(lines))
