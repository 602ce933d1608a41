# Publish messages as programs that use bunny do.
require "bunny"

connection = Bunny.new(ENV.fetch("AMQP_URL")).start
exchange = connection.create_channel.default_exchange
exchange.publish("hello", routing_key: "corpus")
headers = {
  "text" => "grün", "int" => 1, "long" => 2**40, "negative" => -1, "float" => 1.5, "yes" => true, "none" => nil,
  "time" => Time.at(1769860800), "list" => [1, "two", 2.5, [nil]], "table" => { "deep" => { "deeper" => -300 } },
}
exchange.publish(
  "\xFF\x00".b, routing_key: "corpus", persistent: true, content_type: "text/plain", content_encoding: "utf-8",
  priority: 4, correlation_id: "c-1", reply_to: "replies", expiration: "3600000", message_id: "m-1",
  timestamp: 1769860800, type: "order.created", app_id: "shop", headers: headers,
)
connection.close
