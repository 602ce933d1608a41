"""Messages that wait at the broker until they are due, in one of two ways; no timer lives in a process.

    plugin   publisher ──> (logs.delayed) ···5 s···> (logs) ──> …      the exchange type x-delayed-message holds them
    ttl      publisher ──> [hello.delay.5s] ···5 s···> [hello]         a wait queue for each delay (wait_queues.py)
             publisher ──> (logs.exchange.delay.5s) ──> [the same] ···5 s···> (logs) ──> …

Either way a message goes on to the exchange that it was for, with its own routing key and headers, so that direct,
topic and headers exchanges route it as if it had been published then. It carries the time when it is due (the header
mqtool-due), by which receivers tell how late it is.

What is published again after a lost connection waits its whole delay again: late, but never early.

Wait queues are 25 ms apart up to ten seconds, and from there on twice as far whenever the delay doubles; each takes the
delays up to its own. A message's time to live is exact all the same: it comes late, by one such step at most, only if
one with a longer delay lies in front of it in the same queue.

To a quorum queue, or to a durable exchange, which may lead to one, messages wait in quorum queues, which keep them
until they have arrived. (After a restart some may come twice; and RabbitMQ tries again only after three minutes, where
the queue was not there yet.) Since a message that an exchange has no queue for would never arrive, it goes to such an
exchange by way of another one, (logs.due), that leads to a queue as well which keeps nothing. To all others messages
wait in classic queues, which are lighter by far.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange, https://www.rabbitmq.com/docs/ttl
"""
