"""A client of RabbitMQ's management HTTP API. Functions that return lists are generators, which take little memory.

Specify the columns that you need: this makes responses far smaller. https://www.rabbitmq.com/docs/http-api-reference
"""

from mqtool.management.api_client import PAGE_SIZE, PATIENCE, Management, exchange_path, path
from mqtool.management.api_lists import (
    bindings,
    bindings_from,
    bound_to,
    channels,
    connections,
    consumer_timeout,
    consumers,
    counted_queues,
    effective_arguments,
    exchanges,
    federation_links,
    hidden_vhosts,
    listens_on,
    nodes,
    parameters,
    permissions,
    policies,
    queue_totals,
    queues,
    shovels,
    stream_port_beside,
    users,
    vhosts,
    with_policy,
)
