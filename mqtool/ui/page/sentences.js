// Events as sentences, for the table and for screen readers.

/** A name on one line, with escapes for control characters and for characters that change the direction of text. */
export const visible = (name) =>
  name.replace(
    /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu,
    (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

const quote = (name) => (name === "" ? "the default exchange" : `“${visible(name)}”`);

/** A stored offset, in words. -1 means that there is none. */
export const offsetOf = ({ name, offset }) =>
  `${visible(name)}: ${offset < 0 ? "no offset" : `offset ${offset.toLocaleString("en")}`}`;

/** @returns {string} an event as a sentence */
export function sentence(event) {
  const copy = event.copy === undefined ? "" : ` ${event.copy}`;
  switch (event.what) {
    case "published": {
      const { from, details } = event;
      const by =
        from.client !== undefined ? from.client : from.queue !== undefined ? `queue ${quote(from.queue)}` : "its delay";
      const verb =
        from.client !== undefined ? "published by" : from.queue !== undefined ? "dead-lettered by" : "released after";
      if (event.paths.length === 1 && event.paths[0].length === 1)
        return `message ${event.message} published by ${by} to stream ${quote(event.paths[0][0])}`;
      return `message ${event.message} ${verb} ${by} to ${quote(details.exchange)} with key “${details.routing_key}”`;
    }
    case "ready":
      return `message ${event.message} is ready in ${quote(event.queue)} as number${copy}`;
    case "routed":
      return `message ${event.message} goes to queue ${quote(event.queue)}`;
    case "taken":
      return `a message from queue ${quote(event.queue)} goes to a consumer`;
    case "appended":
      return `message ${event.message} is appended to stream ${quote(event.queue)} at offset${copy}`;
    case "read":
      return `offset${copy} of stream ${quote(event.queue)} is read`;
    case "delayed":
      return `message ${event.message} is delayed by exchange ${quote(event.exchange)}`;
    case "confirmed": {
      const which = event.count > 1 ? `${event.count} messages` : `message ${event.messages[0]}`;
      return `${visible(event.from.client)} gets a ${event.nack ? "nack" : "confirm"} for ${which}`;
    }
    case "returned":
      return `message ${event.message} is returned: no queue gets it`;
    case "dropped":
      return `message ${event.message} is dropped: no queue gets it`;
    case "refused":
      return `message ${event.message} is refused by ${quote(event.queue)}, which is full`;
    case "delivered":
      return `number${copy} of ${quote(event.queue)} is delivered${event.redelivered ? " again" : ""}`;
    case "requeued":
      return `number${copy} of ${quote(event.queue)} is requeued: ${event.why}`;
    case "dead-lettered":
      return `number${copy} of ${quote(event.queue)} is dead-lettered to ${quote(event.exchange)}: ${event.reason}`;
    case "discarded":
      return `number${copy} of ${quote(event.queue)} is discarded: ${event.reason}`;
    case "purged":
      return `queue ${quote(event.queue)} is purged`;
    case "replied":
      return `message ${event.message} is a direct reply to ${event.to.client}`;
    case "stored":
      return `${visible(event.from.client)} stored ${offsetOf(event)} for stream ${quote(event.queue)}`;
    case "unknown-address":
      return `${visible(event.from.client)} cannot publish to “${visible(event.address)}”, which does not exist`;
    case "unknown-exchange":
      return `a message was published by ${event.from.client} to ${quote(event.details.exchange)}, which does not exist`;
    default:
      // An event that only a newer broker reports. It may have no queue.
      return event.queue === undefined ? event.what : `number${copy} of ${quote(event.queue)} is ${event.what}`;
  }
}

/**
 * An event as a sentence for screen readers, with the names in the picture; "" if other events say enough.
 * @param {any} event
 * @param {{details: any, queue: string, holder?: string, consumer?: string, publisher?: string}} known  `details` are
 *   undefined if the event belongs to no message
 */
export function spoken(event, { details, queue, holder, consumer, publisher }) {
  const body = details?.body === undefined ? "a binary message" : `“${visible(details.body.slice(0, 40))}”`;
  const again = event.redelivered ? " again" : "";
  switch (event.what) {
    case "published":
      return event.from.client === undefined ? "" : `${visible(event.from.client)} published ${body}`;
    case "ready":
    case "routed":
      return `${body} is in ${visible(queue)}`;
    case "delivered":
    case "taken":
      return `${visible(consumer ?? "a consumer")} got ${body}${again}`;
    case "read":
      return `${visible(consumer ?? "a reader")} read ${body}`;
    case "acknowledged":
      return `${visible(holder ?? "a consumer")} acknowledged ${body}`;
    case "requeued":
      return `${body} went back to ${visible(queue)}`;
    case "dead-lettered":
      return `${visible(queue)} dead-lettered ${body}: ${event.reason}`;
    case "discarded":
      return `${visible(queue)} discarded ${body}: ${event.reason}`;
    case "returned":
      return `${body} was returned to ${visible(publisher ?? "its publisher")}: no queue gets it`;
    case "dropped":
      return `${body} was dropped: no queue gets it`;
    case "refused":
      return `${visible(queue)} refused ${body}: it is full`;
    case "confirmed": {
      const which = event.count > 1 ? `${event.count} messages` : body;
      return `${visible(event.from.client)} got a ${event.nack ? "nack" : "confirm"} for ${which}`;
    }
    case "stored":
    case "unknown-address":
      return sentence(event);
    case "unknown-exchange":
      return `${body} was published to ${quote(details.exchange)}, which does not exist`;
    default:
      return "";
  }
}
