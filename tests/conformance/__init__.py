"""`make conformance`: client libraries' own tests, on the embedded broker and on RabbitMQ."""
