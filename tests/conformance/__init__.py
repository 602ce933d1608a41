"""`make conformance`: the tests of other people's client libraries, on the embedded broker and on RabbitMQ."""
