#!/usr/bin/env bash
# amqplib 2.3.1 (Node.js) sends a Date or a Map in a header as an empty table, without an error.
#
#   { date: {}, map: {} }
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm install --silent --no-audit --no-fund --ignore-scripts amqplib@2.3.1 >/dev/null)
(cd "$scratch" && node -) >"$scratch/output" <<'EOF'
const { decodeFields, encodeTable } = require("./node_modules/amqplib/lib/codec");
const buffer = Buffer.alloc(100);
const size = encodeTable(buffer, { date: new Date(0), map: new Map([["a", 1]]) }, 0);
console.log(decodeFields(buffer.subarray(4, size)));
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
