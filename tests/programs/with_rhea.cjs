// Programs that use rhea can send large messages over AMQP 1.0, settle them with every outcome, filter a stream, and
// reply to requests.
const assert = require("node:assert");
const { once } = require("node:events");
const rhea = require("rhea");

const url = new URL(process.env.AMQP10_URL);
const container = rhea.create_container();

function connect() {
  const connection = container.connect({
    host: url.hostname, port: Number(url.port), hostname: `vhost:${decodeURIComponent(url.pathname.slice(1)) || "/"}`,
    username: url.username, password: url.password, reconnect: false, max_frame_size: 4096,
  });
  return once(connection, "connection_open").then(() => connection);
}

/** Return a function that sends requests to the management node, to declare, bind and delete. */
async function manager(connection) {
  const settings = { source: "/management", target: "/management", properties: { paired: true }, name: "rhea" };
  const responses = connection.open_receiver({ ...settings, snd_settle_mode: 1, autoaccept: false });
  await once(responses, "receiver_open"); // opened one by one, since rhea finds links by name, and both have the same
  const requests = connection.open_sender({ ...settings, snd_settle_mode: 1 });
  await once(requests, "sendable");
  return async (method, path, body) => {
    requests.send({ message_id: path, to: path, subject: method, reply_to: "$me", body });
    const [{ message }] = await once(responses, "message");
    assert.strictEqual(message.correlation_id, path);
    return [Number(message.subject), message.body];
  };
}

async function receiver(connection, source, options = {}) {
  const link = connection.open_receiver({ source, credit_window: 0, autoaccept: false, ...options });
  await once(link, "receiver_open");
  return link;
}

async function next(link) {
  const arrived = once(link, "message");
  link.add_credit(1);
  return (await arrived)[0];
}

async function sent(sender, message, outcome = "accepted") {
  const told = once(sender, outcome);
  sender.send(message);
  return (await told)[0].delivery;
}

async function outcomes(connection, manage) {
  assert.strictEqual((await manage("PUT", "/queues/rhea.dead", { durable: true, arguments: { "x-queue-type": "quorum" } }))[0], 201);
  const settings = { "x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "rhea.dead" };
  assert.strictEqual((await manage("PUT", "/queues/rhea.work", { durable: true, arguments: settings }))[0], 201);
  const sender = connection.open_sender("/queues/rhea.work");
  await once(sender, "sendable");
  const large = "x".repeat(50000);
  await sent(sender, { body: large, message_id: 7, application_properties: { n: 1, yes: true } });
  const work = await receiver(connection, "/queues/rhea.work");
  let { message, delivery } = await next(work);
  assert.deepStrictEqual([message.body, message.message_id, message.application_properties], [large, 7, { n: 1, yes: true }]);
  assert.ok(message.first_acquirer);
  delivery.modified({ delivery_failed: true, undeliverable_here: false, message_annotations: { "x-opt-why": "later" } });
  ({ message, delivery } = await next(work));
  assert.deepStrictEqual([message.delivery_count, message.message_annotations["x-opt-why"]], [1, "later"]);
  delivery.release({ delivery_failed: false });
  ({ message, delivery } = await next(work));
  assert.strictEqual(message.delivery_count, 1);
  delivery.reject();
  const dead = await receiver(connection, "/queues/rhea.dead", { snd_settle_mode: 1 });
  ({ message } = await next(dead));
  assert.strictEqual(message.message_annotations["x-opt-deaths"][0].reason, "rejected");
  const drained = once(work, "receiver_drained");
  work.drain = true;
  work.add_credit(5);
  await drained;
  assert.strictEqual(work.credit, 0);
  const nowhere = connection.open_sender("/exchanges/amq.direct/nowhere");
  await once(nowhere, "sendable");
  await sent(nowhere, { body: "lost" }, "released");
}

async function rpc(connection, manage) {
  await manage("PUT", "/queues/rhea.rpc", { durable: true });
  const server = await receiver(connection, "/queues/rhea.rpc");
  const answers = connection.open_sender({ target: {} });
  server.on("message", ({ message, delivery }) => {
    answers.send({ to: message.reply_to, correlation_id: message.message_id, body: message.body.toUpperCase() });
    delivery.accept();
  });
  server.add_credit(10);
  const client = await connect();
  const replies = client.open_receiver({
    source: { dynamic: true, expiry_policy: "link-detach", capabilities: [rhea.types.wrap_symbol("rabbitmq:volatile-queue")] },
    snd_settle_mode: 1, credit_window: 10,
  });
  await once(replies, "receiver_open");
  const ask = client.open_sender("/queues/rhea.rpc");
  await once(ask, "sendable");
  const answered = once(replies, "message");
  ask.send({ body: "fib", message_id: "1", reply_to: replies.source.address });
  const [{ message }] = await answered;
  assert.deepStrictEqual([message.body, message.correlation_id], ["FIB", "1"]);
  client.close();
  await once(client, "connection_close");
}

async function streams(connection, manage) {
  await manage("PUT", "/queues/rhea.stream", { durable: true, arguments: { "x-queue-type": "stream" } });
  const sender = connection.open_sender("/queues/rhea.stream");
  await once(sender, "sendable");
  for (let number = 0; number < 5; number++) await sent(sender, { body: `${number}`, subject: number % 2 ? "odd" : "even" });
  const filter = {
    "rabbitmq:stream-offset-spec": rhea.types.wrap_described("first", "rabbitmq:stream-offset-spec"),
    "sql-filter": rhea.types.wrap_described("properties.subject = 'odd'", "amqp:sql-filter"),
  };
  const link = await receiver(connection, { address: "/queues/rhea.stream", filter });
  for (const body of ["1", "3"]) {
    const { message, delivery } = await next(link);
    assert.strictEqual(message.body, body);
    delivery.accept();
  }
}

async function errors(connection, manage) {
  const [status, text] = await manage("GET", "/queues/rhea.none");
  assert.deepStrictEqual([status, text.includes("rhea.none")], [404, true]);
  const missing = connection.open_receiver({ source: "/queues/rhea.none", credit_window: 0 });
  await once(missing, "receiver_error");
  assert.strictEqual(missing.error.condition, "amqp:not-found");
  const old = connection.open_sender("rhea.work");
  await once(old, "sender_error");
  assert.strictEqual(old.error.condition, "amqp:invalid-field");
}

async function main() {
  const connection = await connect();
  const manage = await manager(connection);
  for (const step of [outcomes, rpc, streams, errors]) await step(connection, manage);
  connection.close();
  await once(connection, "connection_close");
  const last = await connect();
  const remove = await manager(last);
  for (const name of ["work", "dead", "rpc", "stream"]) assert.strictEqual((await remove("DELETE", `/queues/rhea.${name}`))[0], 200);
  last.close();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
