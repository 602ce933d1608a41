#!/usr/bin/env bash
# rabbitmq-stream-js-client 1.0.0 cannot send a boolean in the application properties of a message. AMQP 1.0 has
# booleans, and the client reads those of other clients.
#
#   number, text: ok
#   boolean: Unsupported type: true
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm install --silent --no-audit --no-fund --ignore-scripts rabbitmq-stream-js-client@1.0.0 >/dev/null)
(cd "$scratch" && node -) >"$scratch/output" <<'EOF'
const { messageSize } = require("rabbitmq-stream-js-client/dist/amqp10/encoder");
for (const [name, applicationProperties] of [["number, text", { n: 1.5, s: "a" }], ["boolean", { b: true }]]) {
  try {
    messageSize({ content: Buffer.from("x"), applicationProperties });
    console.log(`${name}: ok`);
  } catch (error) {
    console.log(`${name}: ${error.message}`);
  }
}
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
