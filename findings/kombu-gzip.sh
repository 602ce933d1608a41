#!/usr/bin/env bash
# kombu 5.7.0 calls its compression "gzip" and labels bodies application/x-gzip, but they are in the format of zlib
# (RFC 1950), which gunzip and other readers of gzip (RFC 1952) refuse. Celery's messages are compressed in this way.
#
#   application/x-gzip 789c
#   gzip: Not a gzipped file (b'x\x9c')
#   zlib: b'{"a": 1}'
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check kombu==5.7.0 2>/dev/null
"$scratch/venv/bin/python" - >"$scratch/output" <<'EOF'
import gzip
import zlib

from kombu.compression import compress

body, label = compress(b'{"a": 1}', "gzip")
print(label, body[:2].hex())
try:
    gzip.decompress(body)
except gzip.BadGzipFile as error:
    print("gzip:", error)
print("zlib:", zlib.decompress(body))
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
