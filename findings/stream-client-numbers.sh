#!/usr/bin/env bash
# rabbitmq-stream-js-client 1.0.0 sends 1.5 in the application properties of a message as the 32-bit integer 1 (71 is
# AMQP 1.0's code for int) and 0 as null (40), without an error. It refuses booleans, although AMQP 1.0 has them.
#
#   1.5: a1016e7100000001
#   0: a1016e40
#   true: Unsupported type: true
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm install --silent --no-audit --no-fund --ignore-scripts rabbitmq-stream-js-client@1.0.0 >/dev/null)
(cd "$scratch" && node -) >"$scratch/output" <<'EOF'
const { amqpEncode } = require("rabbitmq-stream-js-client/dist/amqp10/encoder");
const { BufferDataWriter } = require("rabbitmq-stream-js-client/dist/requests/buffer_data_writer");
for (const n of [1.5, 0, true]) {
  const writer = new BufferDataWriter(Buffer.alloc(1000), 0);
  try {
    amqpEncode(writer, { content: Buffer.from(""), applicationProperties: { n } });
    console.log(`${n}: ${/a1016e(40|[0-9a-f]{10})/.exec(writer.toBuffer().toString("hex"))[0]}`);
  } catch (error) {
    console.log(`${n}: ${error.message}`);
  }
}
EOF
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
