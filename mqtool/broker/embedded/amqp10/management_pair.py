"""The pairs of links between a client and the management node: one for requests, one for responses.

https://docs.oasis-open.org/amqp/linkpair/v1.0/cs01/linkpair-v1.0-cs01.html
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mqtool.broker.embedded.amqp10.errors10 import (
    DECODE_ERROR,
    FAILED,
    INTERNAL_ERROR,
    INVALID_FIELD,
    TOO_LARGE,
    UNATTACHED,
    UNSUPPORTED,
    LinkError,
    SessionError,
)
from mqtool.broker.embedded.amqp10.management import UnknownRequest, handle
from mqtool.broker.embedded.amqp10.outgoing_link import Credit, send_delivery
from mqtool.broker.embedded.amqp10.session_state import SessionState
from mqtool.codecs.amqp10_frames import FIRST, SENDER, SETTLED, Attach, Flow, Source, Target, Transfer, add
from mqtool.codecs.amqp10_values import Symbol

MANAGEMENT_NODE = "/management"

#: A client's initial credit for requests. The broker tops it up when half of it is left.
_CREDIT = 8


class ManagementRequests:
    """The link on which a client sends requests. Its attributes are a subset of IncomingLink's."""

    target = Target(MANAGEMENT_NODE)
    unsettled = 0

    def __init__(self, attach: Attach) -> None:
        self.name = attach.name
        self.delivery_count: int = attach.initial_delivery_count or 0
        self.credit = _CREDIT


class Responses:
    """The link on which a client receives responses. Its attributes are a subset of OutgoingLink's."""

    address, queue_name, no_ack = MANAGEMENT_NODE, "", True
    filters: Mapping[Any, Any] = MappingProxyType({})

    def __init__(self, name: str, flow: Credit, largest: int) -> None:
        self.name = name
        self.flow = flow
        self.largest = largest


class ManagementLinks:
    """A session's links to the management node. The two links of a pair have the same name.

    Attributes:
        requests, responses: the links on which the client sends and receives, by handle.
    """

    def __init__(self, session: SessionState) -> None:
        self._session = session
        self.requests: dict[int, ManagementRequests] = {}
        self.responses: dict[int, Responses] = {}

    def __contains__(self, handle: int) -> bool:
        return handle in self.requests or handle in self.responses

    def attach(self, attach: Attach) -> bool:
        """Attach a link if its terminus is the management node; return False if it is not."""
        terminus = attach.target if attach.role == SENDER else attach.source
        if not isinstance(terminus, Source | Target) or terminus.address != MANAGEMENT_NODE:
            return False
        if attach.role == SENDER and attach.snd_settle_mode != SETTLED:
            return False
        if (attach.properties or {}).get(Symbol("paired")) is not True:
            raise LinkError(INVALID_FIELD, "Link property 'paired' is not set to boolean value 'true'")
        half = self.requests if attach.role == SENDER else self.responses
        if any(each.name == attach.name for each in half.values()):
            raise LinkError(FAILED, f"received invalid attach for management link pair {attach.name}")
        session, largest = self._session, self._session.vhost.profile.largest_message
        answer = attach._replace(role=not attach.role, snd_settle_mode=SETTLED, unsettled=None)
        if attach.role == SENDER:
            self.requests[attach.handle] = requests = ManagementRequests(attach)
            session.send(answer._replace(rcv_settle_mode=FIRST, initial_delivery_count=None, max_message_size=largest))
            self._send_credit(attach.handle, requests)
        else:
            limit = attach.max_message_size or 0
            self.responses[attach.handle] = Responses(attach.name, Credit(session, attach.handle), limit)
            session.send(answer._replace(initial_delivery_count=0))
        return True

    def _send_credit(self, handle: int, requests: ManagementRequests) -> None:
        self._session.flow(handle=handle, delivery_count=requests.delivery_count, link_credit=requests.credit)

    def detach(self, handle: int) -> bool:
        """Remove a link; return False if there is none with this handle."""
        return (self.requests.pop(handle, None) or self.responses.pop(handle, None)) is not None

    def flow(self, flow: Flow) -> bool:
        """Handle a flow frame for one of these links; return False if it is for another link."""
        if flow.handle not in self.responses:
            return flow.handle in self.requests
        credit = self.responses[flow.handle].flow
        credit.receive(flow)
        if credit.draining:
            credit.finish_drain(0)
        elif flow.echo:
            credit.send(0)
        return True

    def transfer(self, transfer: Transfer, payload: bytes) -> Iterator[None]:
        """Handle a request in steps, and send the response. Raises SessionError if the client breaks the protocol."""
        requests = self.requests.get(transfer.handle)
        if requests is None:
            raise SessionError(UNATTACHED, f"Unknown link handle: {transfer.handle}")
        if not transfer.settled or transfer.more:
            raise SessionError(UNSUPPORTED, "management requests must be settled and in one transfer")
        found = next((item for item in self.responses.items() if item[1].name == requests.name), None)
        if found is None:
            raise SessionError(FAILED, "received transfer on half open management link pair")
        number, responses = found
        if responses.flow.credit <= 0:
            text = f"insufficient credit ({responses.flow.credit}) for management link from RabbitMQ to client"
            raise SessionError(FAILED, text)
        requests.credit -= 1
        requests.delivery_count = add(requests.delivery_count, 1)
        session = self._session
        try:
            response = yield from handle(session.connection, payload)
        except ValueError as error:
            raise SessionError(DECODE_ERROR, f"failed to parse message: {error}") from error
        except UnknownRequest as error:
            raise SessionError(INTERNAL_ERROR, str(error)) from error
        if session.is_open:
            self._respond(transfer.handle, number, response)

    def _respond(self, request_handle: int, number: int, response: bytes) -> None:
        session, requests, responses = self._session, self.requests[request_handle], self.responses[number]
        if responses.largest and len(response) > responses.largest:
            text = f"message size ({len(response)} bytes) > maximum message size ({responses.largest} bytes)"
            raise SessionError(TOO_LARGE, text)
        if requests.credit <= _CREDIT // 2:
            requests.credit = _CREDIT
            self._send_credit(request_handle, requests)
        delivery_id, session.delivered = session.delivered, add(session.delivered, 1)
        count = responses.flow.delivery_count
        responses.flow.use()
        send_delivery(session, number, delivery_id, count, response, settled=True)
