#!/usr/bin/env bash
# pika 1.4.4 decodes floats in headers, AMQP's types `f` and `d`, to integers, without an error. It cannot encode floats
# either. A consumer reads the header price=0.99 of another client as 0. (1.3.2 does the same; 1.5.0rc1 does not.)
#
#   received: {'price': 0L, 'deep': {'list': [-1L]}}
#   sending: UnsupportedAMQPFieldException
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check pika==1.4.4 2>/dev/null
"$scratch/venv/bin/python" - >"$scratch/output" <<'EOF'
import struct

from pika import data, exceptions


def sized(content):
    return struct.pack(">I", len(content)) + content


double, single = struct.pack(">cd", b"d", 0.99), struct.pack(">cf", b"f", -1.5)
deep = b"\x04deepF" + sized(b"\x04listA" + sized(single))
print("received:", data.decode_table(sized(b"\x05price" + double + deep), 0)[0])
try:
    data.encode_table([], {"price": 0.99})
except exceptions.UnsupportedAMQPFieldException as error:
    print("sending:", type(error).__name__)
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
