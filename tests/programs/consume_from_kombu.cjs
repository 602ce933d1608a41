// Consumes the message of with_kombu_to_node.py. The argument is the large number in its headers, if any.
const assert = require("node:assert");
const amqplib = require("amqplib");

async function main() {
  const connection = await amqplib.connect(process.env.AMQP_URL);
  const channel = await connection.createChannel();
  await channel.prefetch(1);
  const message = await new Promise((resolve) => channel.consume("kombu.to.node", resolve));
  const large = process.argv[2] ? { large: Number(process.argv[2]) } : {};
  assert.deepStrictEqual(JSON.parse(message.content.toString()), { id: 7 });
  assert.deepEqual(message.properties.headers, { small: -1, text: "ü", list: [1, "two"], ...large });
  channel.ack(message);
  await channel.close();
  await connection.close();
}

main().catch((error) => { console.error(error); process.exit(1); });
