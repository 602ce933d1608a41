<?php
// Programs that use php-amqplib get confirms, returned messages and dead letters, and can reconnect.

require 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Connection\AMQPConnectionConfig;
use PhpAmqpLib\Connection\AMQPConnectionFactory;
use PhpAmqpLib\Exception\AMQPConnectionClosedException;
use PhpAmqpLib\Exception\AMQPProtocolChannelException;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

function equal($expected, $found): void
{
    $expected === $found or throw new Exception(json_encode($expected) . ' expected, found: ' . json_encode($found));
}

function consume(AMQPChannel $channel, array &$got): void
{
    $channel->basic_qos(0, 2, false);
    $channel->basic_consume('php.work', '', false, false, false, false, function ($message) use (&$got) {
        $got[] = $message;
    });
}

function take(AMQPChannel $channel, array &$got): AMQPMessage
{
    while (!$got) {
        $channel->wait(null, false, 10);
    }
    return array_shift($got);
}

$url = parse_url(getenv('AMQP_URL'));
$config = new AMQPConnectionConfig();
$config->setHost($url['host']);
$config->setPort($url['port']);
$config->setUser($url['user']);
$config->setPassword($url['pass']);
$config->setVhost(urldecode(substr($url['path'], 1)));
$config->setConnectionName('php-amqplib');
$connection = AMQPConnectionFactory::create($config);
$channel = $connection->channel();

$acks = 0;
$returned = $got = [];
$channel->set_ack_handler(function () use (&$acks) { $acks++; });
$channel->set_return_listener(function ($code, $text, $exchange, $key, $message) use (&$returned) {
    $returned[] = [$code, $key, $message->body];
});
$channel->confirm_select();
$channel->exchange_declare('php.dead', 'fanout');
$channel->queue_declare('php.buried', false, false, true);
$channel->queue_bind('php.buried', 'php.dead');
$arguments = new AMQPTable(['x-dead-letter-exchange' => 'php.dead']);
$channel->queue_declare('php.work', false, true, false, false, false, $arguments);
$headers = ['big' => 2 ** 40, 'nested' => ['list' => [1, 'two', null, true]], 'small' => -(2 ** 40)]; // RabbitMQ 4 sorts them
$properties = ['delivery_mode' => 2, 'application_headers' => new AMQPTable($headers)];
foreach (range(0, 4) as $number) {
    $channel->basic_publish(new AMQPMessage("$number", $properties), '', 'php.work');
}
$channel->basic_publish(new AMQPMessage('lost'), '', 'php.nowhere', true);
$channel->wait_for_pending_acks_returns(10);
equal([6, [[312, 'php.nowhere', 'lost']]], [$acks, $returned]);

consume($channel, $got);
$first = take($channel, $got);
$second = take($channel, $got);
equal(['0', '1'], [$first->body, $second->body]);
equal($headers, $first->get('application_headers')->getNativeData());
equal(3, $channel->queue_declare('php.work', true)[1]); // no more were delivered than prefetch allows
$first->nack(true);
$second->reject(false);
$rest = [];
while (count($rest) < 4) {
    $message = take($channel, $got);
    $message->ack();
    $rest[] = [$message->body, $message->isRedelivered()];
}
sort($rest);
equal([['0', true], ['2', false], ['3', false], ['4', false]], $rest);

do {
    $letter = $channel->basic_get('php.buried', true);
} while (!$letter);
$death = $letter->get('application_headers')->getNativeData()['x-death'][0];
equal(['1', 'rejected', 'php.work', 1], [$letter->body, $death['reason'], $death['queue'], $death['count']]);

try {
    $connection->channel()->queue_declare('php.work', false, false, false, false);
    throw new Exception('a durable queue was redeclared as a transient one');
} catch (AMQPProtocolChannelException $error) {
    equal([406, true], [$error->getCode(), $channel->is_open()]);
}

// An operator closes the connection: the library throws an exception, and the queue is still there after reconnecting.
passthru('python close_connection.py php-amqplib', $status);
equal(0, $status);
try {
    take($channel, $got);
    throw new Exception('the closed connection threw no exception');
} catch (AMQPConnectionClosedException $error) {
    equal(320, $error->getCode());
}
$connection->reconnect();
$channel = $connection->channel();
consume($channel, $got);
$channel->basic_publish(new AMQPMessage('again'), '', 'php.work');
$message = take($channel, $got);
equal('again', $message->body);
$message->ack();
$channel->queue_delete('php.work');
$channel->exchange_delete('php.dead');
$connection->close();
