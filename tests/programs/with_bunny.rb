# Programs that use bunny get confirms, returned messages and dead letters, and bunny recovers from a lost connection.
require "bunny"

def equal(expected, found)
  raise "#{expected.inspect} expected, #{found.inspect} found" unless expected == found
end

back = Queue.new
connection = Bunny.new(ENV.fetch("AMQP_URL"), connection_name: "bunny", network_recovery_interval: 0.1)
connection.after_recovery_completed { back << true }
connection.start
channel = connection.create_channel
channel.confirm_select
channel.prefetch(2)

buried = channel.queue("bunny.buried", exclusive: true).bind(channel.fanout("bunny.dead", auto_delete: true))
work = channel.queue("bunny.work", exclusive: true, arguments: { "x-dead-letter-exchange" => "bunny.dead" })
headers = { "big" => 2**40, "small" => -(2**40), "nested" => { "list" => [1, "two", nil, 3.5], "yes" => true } }
5.times { |number| work.publish(number.to_s, headers: headers, persistent: true) }
equal(true, channel.wait_for_confirms)

returned = Queue.new
nowhere = channel.default_exchange
nowhere.on_return { |info, _, body| returned << [info.reply_code, info.routing_key, body] }
nowhere.publish("lost", routing_key: "bunny.nowhere", mandatory: true)
equal([312, "bunny.nowhere", "lost"], returned.pop)

got = Queue.new
work.subscribe(manual_ack: true) { |info, properties, body| got << [info, properties.headers, body] }
first, second = got.pop, got.pop
equal([["0", headers], ["1", headers]], [first, second].map { |_, found, body| [body, found] })
equal(3, work.message_count) # no more were delivered than prefetch allows
channel.nack(first[0].delivery_tag, false, true)
channel.reject(second[0].delivery_tag)
rest = 4.times.map do
  info, _, body = got.pop
  channel.ack(info.delivery_tag)
  [body, info.redelivered?]
end
equal([["0", true], ["2", false], ["3", false], ["4", false]], rest.sort)

letter = buried.pop until letter&.first
equal("1", letter[2])
equal(["rejected", "bunny.work", 1], letter[1].headers["x-death"][0].values_at("reason", "queue", "count"))

begin
  connection.create_channel.queue("bunny.work")
  raise "an exclusive queue was redeclared as a non-exclusive one"
rescue Bunny::ResourceLocked
  equal(true, channel.open?)
end

# An operator closes the connection: bunny restores the queue, the consumer and the prefetch limit.
system("python", "close_connection.py", "bunny", exception: true)
back.pop
work.publish("again")
info, _, body = got.pop
equal("again", body)
channel.ack(info.delivery_tag)
connection.close
