#!/usr/bin/env bash
# aio-pika 10.2.1 (with pamqp 4.0.1) sends every float in a header as AMQP's 32-bit `f`, although Python's floats have
# 64 bits: numbers lose digits without an error, and large ones cannot be sent.
#
#   0.1 -> f, 0.10000000149011612
#   16777217.0 -> f, 16777216.0
#   1e+300 -> float too large to pack with f format
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check aio-pika==10.2.1 pamqp==4.0.1 2>/dev/null
"$scratch/venv/bin/python" - >"$scratch/output" <<'EOF'
import aio_pika
from pamqp import decode

for number in (0.1, 16777217.0, 1e300):
    try:
        encoded = aio_pika.Message(b"", headers={"n": number}).properties.marshal()
    except OverflowError as error:
        print(number, "->", error)
        continue
    table = encoded[2:]  # after the flags
    print(number, "->", f"{chr(table[6])},", decode.field_table(table)[1]["n"])
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
