// Programs that use amqplib get confirms, dead letters and RPC replies. If a program that uses rascal fails to handle a
// message, rascal publishes the message again after a delay.
const assert = require("node:assert");
const amqplib = require("amqplib");
const { BrokerAsPromised } = require("rascal");

const url = process.env.AMQP_URL;

async function withAmqplib() {
  const connection = await amqplib.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.prefetch(2);
  await channel.assertExchange("node.dead", "fanout", { durable: true });
  await channel.assertQueue("node.buried", { durable: true });
  await channel.bindQueue("node.buried", "node.dead", "");
  await channel.assertQueue("node.work", { durable: true, deadLetterExchange: "node.dead", arguments: { "x-queue-type": "quorum" } });
  channel.sendToQueue("node.work", Buffer.from("good"), { persistent: true, headers: { big: 2 ** 40, nested: { list: [1, "two", null] } } });
  channel.sendToQueue("node.work", Buffer.from("bad"), { persistent: true });
  await channel.waitForConfirms();
  const buried = await new Promise((resolve) => {
    channel.consume("node.buried", (message) => { channel.ack(message); resolve(message); });
    channel.consume("node.work", (message) => {
      if (message.content.toString() === "good") {
        assert.deepStrictEqual(message.properties.headers, { big: 2 ** 40, nested: { list: [1, "two", null] } });
        channel.ack(message);
      } else channel.nack(message, false, false);
    });
  });
  assert.strictEqual(buried.content.toString(), "bad");
  assert.strictEqual(buried.properties.headers["x-death"][0].reason, "rejected");

  const replies = new Promise((resolve) => channel.consume("amq.rabbitmq.reply-to", resolve, { noAck: true }));
  const server = await connection.createChannel();
  const { queue } = await server.assertQueue("", { exclusive: true });
  await server.consume(queue, (request) => {
    server.sendToQueue(request.properties.replyTo, Buffer.from(request.content.toString().toUpperCase()));
    server.ack(request);
  });
  channel.sendToQueue(queue, Buffer.from("fib"), { replyTo: "amq.rabbitmq.reply-to" });
  assert.strictEqual((await replies).content.toString(), "FIB");

  const wrong = await connection.createChannel();
  const closed = new Promise((resolve) => wrong.once("error", resolve));
  await assert.rejects(wrong.assertQueue("node.work", { durable: false }), /406.*PRECONDITION.FAILED/);
  assert.strictEqual((await closed).code, 406);
  await connection.close();
}

async function withRascal() {
  const broker = await BrokerAsPromised.create({
    vhosts: {
      "/": {
        connection: { url },
        exchanges: { "rascal.events": { type: "topic" } },
        queues: { "rascal.orders": {} },
        bindings: ["rascal.events[order.#] -> rascal.orders"],
        publications: { placed: { exchange: "rascal.events", routingKey: "order.placed" } },
        subscriptions: { orders: { queue: "rascal.orders", prefetch: 3 } },
      },
    },
  });
  const attempts = [];
  const subscription = await broker.subscribe("orders");
  const done = new Promise((resolve, reject) => {
    subscription.on("error", reject);
    subscription.on("message", (message, content, ackOrNack) => {
      attempts.push(content.item);
      if (attempts.length < 3) ackOrNack(new Error("once more"), { strategy: "republish", attempts: 5, defer: 50 });
      else { ackOrNack(); resolve(message); }
    });
  });
  const publication = await broker.publish("placed", { item: 7 });
  await new Promise((resolve, reject) => { publication.on("success", resolve); publication.on("error", reject); });
  const last = await done;
  assert.deepStrictEqual(attempts, [7, 7, 7]);
  assert.strictEqual(last.properties.headers.rascal.recovery["rascal.orders"].republished, 2);
  await broker.shutdown();
}

withAmqplib().then(withRascal).catch((error) => { console.error(error); process.exit(1); });
