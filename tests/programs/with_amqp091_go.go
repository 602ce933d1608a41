// Programs that use amqp091-go get confirms, returned messages and dead letters, and the client library tells them
// that a channel or the connection was closed.
package main

import (
	"context"
	"log"
	"os"
	"os/exec"
	"reflect"
	"sort"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must(err error) {
	if err != nil {
		log.Panic(err)
	}
}

func equal(expected, found any) {
	if !reflect.DeepEqual(expected, found) {
		log.Panicf("%#v expected, %#v found", expected, found)
	}
}

func connect() (*amqp.Connection, *amqp.Channel, chan amqp.Confirmation) {
	named := amqp.NewConnectionProperties()
	named.SetClientConnectionName("amqp091-go")
	connection, err := amqp.DialConfig(os.Getenv("AMQP_URL"), amqp.Config{Properties: named})
	must(err)
	channel, err := connection.Channel()
	must(err)
	must(channel.Confirm(false))
	must(channel.Qos(2, 0, false))
	return connection, channel, channel.NotifyPublish(make(chan amqp.Confirmation, 1))
}

// This function does not use PublishWithDeferredConfirm. Before version 1.8, Wait hangs if the confirm arrives before
// PublishWithDeferredConfirm returns (https://github.com/rabbitmq/amqp091-go/issues/182), and Debian bookworm has 1.5.
func publish(channel *amqp.Channel, confirms chan amqp.Confirmation, key, body string, headers amqp.Table) {
	must(channel.PublishWithContext(context.Background(), "", key, true, false,
		amqp.Publishing{Body: []byte(body), Headers: headers, DeliveryMode: amqp.Persistent}))
	equal(true, (<-confirms).Ack)
}

func consume(channel *amqp.Channel, queue string) <-chan amqp.Delivery {
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	must(err)
	return deliveries
}

func main() {
	connection, channel, confirms := connect()
	must(channel.ExchangeDeclare("go.dead", "fanout", false, true, false, false, nil))
	_, err := channel.QueueDeclare("go.buried", false, false, true, false, nil)
	must(err)
	must(channel.QueueBind("go.buried", "", "go.dead", false, nil))
	_, err = channel.QueueDeclare("go.work", true, false, false, false, amqp.Table{"x-dead-letter-exchange": "go.dead"})
	must(err)

	nested := amqp.Table{"list": []any{int32(1), "two", nil, 3.5, true}}
	headers := amqp.Table{"big": int64(1) << 40, "nested": nested}
	for _, body := range []string{"0", "1", "2", "3", "4"} {
		publish(channel, confirms, "go.work", body, headers)
	}
	returned := channel.NotifyReturn(make(chan amqp.Return, 1))
	publish(channel, confirms, "go.nowhere", "lost", nil)
	equal(uint16(312), (<-returned).ReplyCode)

	work := consume(channel, "go.work")
	first, second := <-work, <-work
	equal([]string{"0", "1"}, []string{string(first.Body), string(second.Body)})
	equal(headers, first.Headers)
	state, err := channel.QueueInspect("go.work")
	must(err)
	equal(3, state.Messages) // no more were delivered than prefetch allows
	must(first.Nack(false, true))
	must(second.Reject(false))
	rest := []string{}
	for len(rest) < 4 {
		delivery := <-work
		must(delivery.Ack(false))
		if delivery.Redelivered {
			delivery.Body = append(delivery.Body, " again"...)
		}
		rest = append(rest, string(delivery.Body))
	}
	sort.Strings(rest)
	equal([]string{"0 again", "2", "3", "4"}, rest)

	letter := <-consume(channel, "go.buried")
	death := letter.Headers["x-death"].([]any)[0].(amqp.Table)
	equal("1", string(letter.Body))
	equal([]any{"rejected", "go.work", int64(1)}, []any{death["reason"], death["queue"], death["count"]})
	must(letter.Ack(false))

	wrong, err := connection.Channel()
	must(err)
	_, err = wrong.QueueDeclare("go.work", false, false, false, false, nil)
	equal(amqp.PreconditionFailed, err.(*amqp.Error).Code)

	// An operator closes the connection: the library reports it, the deliveries end, and the queue is still there.
	closed := connection.NotifyClose(make(chan *amqp.Error, 1))
	must(exec.Command("python", "close_connection.py", "amqp091-go").Run())
	equal(amqp.ConnectionForced, (<-closed).Code)
	_, open := <-work
	equal(false, open)
	connection, channel, confirms = connect()
	publish(channel, confirms, "go.work", "again", nil)
	delivery := <-consume(channel, "go.work")
	equal("again", string(delivery.Body))
	must(delivery.Ack(false))
	_, err = channel.QueueDelete("go.work", false, false, false)
	must(err)
	must(connection.Close())
}
