"""mqtool: learn, demonstrate, script and operate RabbitMQ from the command line."""

__version__ = "0.1.0"
