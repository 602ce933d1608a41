// Publish messages as programs for Node.js do: publish.cjs CLIENT. The broker is at AMQP_URL, STREAM_PORT and AMQP10_URL.
const { once } = require("node:events");

const properties = {
  contentType: "text/plain", contentEncoding: "utf-8", priority: 4, correlationId: "c-1", replyTo: "replies",
  expiration: "3600000", messageId: "m-1", timestamp: 1769860800, type: "order.created", appId: "shop",
};
const headers = {
  text: "grün", tiny: 5, short: 128, int: 32768, long: 2 ** 31, huge: 2 ** 40, negative: -1, float: 1.5, yes: true,
  none: null, list: [1, "two", 2.5, [null]], table: { deep: { deeper: -300 } }, bytes: Buffer.from([255, 0]),
};

const clients = {
  async amqplib() {
    const connection = await require("amqplib").connect(process.env.AMQP_URL);
    const channel = await connection.createConfirmChannel();
    channel.sendToQueue("corpus", Buffer.from("hello"));
    const typed = { int8: { "!": "int8", value: -5 }, time: { "!": "timestamp", value: 1769860800 },
      float32: { "!": "float", value: 1.5 }, decimal: { "!": "decimal", value: { digits: 150, places: 2 } } };
    channel.sendToQueue("corpus", Buffer.from([255, 0]), { ...properties, persistent: true, headers: { ...headers, ...typed } });
    await channel.waitForConfirms();
    await connection.close();
  },

  async rabbitmq_client() {
    const { Connection } = require("rabbitmq-client");
    const connection = new Connection(process.env.AMQP_URL);
    const publisher = connection.createPublisher({ confirm: true });
    await publisher.send("corpus", "hello");
    await publisher.send("corpus", { order: 4711 });
    await publisher.send({ routingKey: "corpus", ...properties, durable: true, headers }, Buffer.from([255, 0]));
    await publisher.close();
    await connection.close();
  },

  async streams() {
    const { connect } = require("rabbitmq-stream-js-client");
    const client = await connect({ hostname: "127.0.0.1", port: Number(process.env.STREAM_PORT), username: "guest",
      password: "guest", vhost: "/" });
    const publisher = await client.declarePublisher({ stream: "corpus" });
    await publisher.send(Buffer.from("hello"));
    await publisher.send(Buffer.from([255, 0]), {
      messageProperties: { messageId: "m-1", subject: "about", replyTo: "replies", contentType: "text/plain",
        correlationId: "c-1", creationTime: new Date(1769860800123) },
      applicationProperties: { text: "grün", int: 1, float: 1.5 },
    });
    await publisher.flush();
    await new Promise((resolve) => setTimeout(resolve, 500));
    await client.close();
  },

  async rhea() {
    const rhea = require("rhea");
    const url = new URL(process.env.AMQP10_URL);
    const connection = rhea.create_container().connect({ host: url.hostname, port: Number(url.port), username: "guest",
      password: "guest", hostname: "vhost:/", reconnect: false });
    const sender = connection.open_sender("/queues/corpus");
    await once(sender, "sendable");
    const { types, message } = rhea;
    const messages = [
      { body: "hello" },
      { body: message.data_section(Buffer.from([255, 0])), durable: true, priority: 7, ttl: 3600000,
        message_id: "m-1", subject: "about", correlation_id: types.wrap_ulong(67), content_type: "text/plain",
        content_encoding: "utf-8", creation_time: new Date(1769860800123), group_id: "g", group_sequence: 7,
        reply_to_group_id: "r", reply_to: "/queues/replies",
        application_properties: { text: "grün", int: types.wrap_int(1), byte: types.wrap_byte(-5),
          ushort: types.wrap_ushort(5), ulong: types.wrap_ulong(5), float: types.wrap_float(1.5), double: 2.5,
          yes: true, long: types.wrap_long(-7), time: types.wrap_timestamp(1769860800123) },
        message_annotations: { "x-tenant": "acme", "x-number": types.wrap_long(5) } },
      { body: { order: 4711, lines: ["tea"] } },
    ];
    for (const each of messages) {
      const accepted = once(sender, "accepted");
      sender.send(each);
      await accepted;
    }
    connection.close();
    await once(connection, "connection_close");
  },
};

clients[process.argv[2]]().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
