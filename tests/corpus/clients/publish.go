// Publish messages as programs that use amqp091-go do.
package main

import (
	"context"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	check(err)
	channel, err := connection.Channel()
	check(err)
	headers := amqp.Table{
		"text": "grün", "int": 1, "int64": int64(5), "int16": int16(-300), "int8": int8(-5), "byte": byte(200),
		"float32": float32(1.5), "float64": 2.5, "yes": true, "none": nil, "time": time.Unix(1769860800, 0),
		"bytes": []byte{255, 0}, "decimal": amqp.Decimal{Scale: 2, Value: 150},
		"list": []interface{}{1, "two", nil, int64(3)}, "table": amqp.Table{"deep": amqp.Table{"deeper": int64(-300)}},
	}
	for _, message := range []amqp.Publishing{
		{Body: []byte("hello")},
		{Body: []byte{255, 0}, ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: 2, Priority: 4,
			CorrelationId: "c-1", ReplyTo: "replies", Expiration: "3600000", MessageId: "m-1",
			Timestamp: time.Unix(1769860800, 0), Type: "order.created", AppId: "shop", Headers: headers},
	} {
		check(channel.PublishWithContext(context.Background(), "", "corpus", false, false, message))
	}
	check(connection.Close())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
