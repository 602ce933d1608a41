<?php
// Publish messages as programs that use php-amqplib do.

require 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$url = parse_url(getenv('AMQP_URL'));
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);
$channel = $connection->channel();
$channel->basic_publish(new AMQPMessage('hello'), '', 'corpus');
$headers = [
    'text' => 'grün', 'int' => 1, 'long' => 2 ** 40, 'negative' => -1, 'float' => 1.5, 'yes' => true, 'none' => null,
    'time' => new DateTime('@1769860800'), 'list' => [1, 'two', [null]], 'empty' => [],
    'table' => ['deep' => ['deeper' => -300]],
];
$channel->basic_publish(new AMQPMessage("\xff\x00", [
    'content_type' => 'text/plain', 'content_encoding' => 'utf-8', 'delivery_mode' => 2, 'priority' => 4,
    'correlation_id' => 'c-1', 'reply_to' => 'replies', 'expiration' => '3600000', 'message_id' => 'm-1',
    'timestamp' => 1769860800, 'type' => 'order.created', 'app_id' => 'shop',
    'application_headers' => new AMQPTable($headers),
]), '', 'corpus');
$connection->close();
