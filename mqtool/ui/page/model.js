// The state of the picture at a moment, made from records: the broker's topology, messages at rest, and messages that
// move. Applying the same records always gives the same state, so that the page can go back in time.

import { PLAY_KINDS } from "./play.js";
import { sentence } from "./sentences.js";

/** Milliseconds that a message takes from one node to the next, and that its end is shown. */
export const HOP = 450;
const END = 700;
const KEPT_MESSAGES = 1000;
const KEPT_MOTIONS = 1500;
const KEPT_SENTENCES = 200;
const KEPT_OFFSETS = 12;
/** A publisher or consumer that has gone is shown for this long, in milliseconds. */
const LINGERS = 4000;
/** Milliseconds over which rates are measured. */
const RATE_OVER = 1500;

/**
 * @typedef {object} Copy  a message in one queue, or in a delayed exchange
 * @property {string} key
 * @property {string} node      where it is: the id of a node
 * @property {string} place     the id of its queue or delayed exchange
 * @property {number} number    orders the copies of a queue
 * @property {string} fate
 * @property {any} details
 * @property {number} busyUntil  when it arrives there
 * @property {number} [until]    when its delay ends
 * @property {string[]} history
 */

/** @returns {any} an empty state */
export function emptyState() {
  return {
    t: 0,
    about: {},
    exchanges: new Map(),
    queues: new Map(),
    consumers: new Map(),
    publishers: new Map(),
    links: new Map(),
    copies: new Map(),
    messages: new Map(),
    motions: [],
    sentences: [],
    counts: new Map(),
    rates: new Map(),
    seen: new Map(),
    lastDead: null,
    lately: new Map(),
    topology: null,
    number: 0,
    play: null,
  };
}

/** Apply a record to a state. */
export function apply(state, record) {
  state.t = Math.max(state.t, record.t);
  const handler = HANDLERS[record.kind === "event" ? record.what : record.kind];
  if (handler) handler(state, record);
  if (record.kind === "event") say(state, record);
  prune(state);
}

/** Records that make this state, as far as it lasts: a recording that begins here begins with them. */
export function beginning(state) {
  const waiting = [...state.copies.values()].map((copy) => {
    const place = copy.place.slice(2);
    const isHeld = copy.node.startsWith("c:") && state.consumers.has(copy.node);
    return {
      ...(copy.place.startsWith("x:") ? { exchange: place, until: copy.until } : { queue: place }),
      ...(isHeld ? { consumer: state.consumers.get(copy.node).name } : {}),
      copy: copy.number,
      redelivered: copy.fate === "requeued",
      details: copy.details,
    };
  });
  const at = (record) => ({ ...record, t: state.t });
  return state.topology === null ? [] : [at(state.about), at(state.topology), at({ kind: "snapshot", waiting })];
}

function prune(state) {
  if (state.motions.length > KEPT_MOTIONS) state.motions.splice(0, state.motions.length - KEPT_MOTIONS);
  if (state.motions.length && state.motions[0].t1 < state.t - 1000) {
    state.motions = state.motions.filter((each) => each.t1 >= state.t - 1000);
  }
  while (state.messages.size > KEPT_MESSAGES) state.messages.delete(state.messages.keys().next().value);
  dropGone(state, state.t);
}

/** Drop publishers and consumers that had gone a while before this time. */
export function dropGone(state, time) {
  for (const nodes of [state.publishers, state.consumers]) {
    for (const [id, node] of nodes) {
      if (node.gone && node.gone < time - LINGERS) nodes.delete(id);
    }
  }
}

const exchangeId = (name) => `x:${name}`;
const queueId = (name) => `q:${name}`;
const publisherId = (name) => `p:${name}`;
const consumerId = (name, queue) => (name === null ? `c:get ${queue}` : `c:${name}`);

function exchangeOf(state, name) {
  const id = exchangeId(name);
  if (!state.exchanges.has(id))
    state.exchanges.set(id, { id, name, type: name === "" ? "direct" : "", alternate: null });
  return id;
}

function queueOf(state, name) {
  const id = queueId(name);
  if (!state.queues.has(id)) {
    state.queues.set(id, { id, name, type: "", ready: 0, unacked: 0, deadLetterExchange: null, arguments: {} });
  }
  return id;
}

function consumerOf(state, name, queue) {
  const id = consumerId(name, queue);
  if (!state.consumers.has(id)) {
    const tag = name === null ? "basic.get" : name.slice(name.lastIndexOf("/") + 1);
    const label = /^((amq\.)?ctag|stream\.subid-)/.test(tag) ? "unnamed consumer" : tag; // the client chose no tag
    state.consumers.set(id, { id, name, label, queue: queueId(queue), prefetch: 0, isUnknown: true, gone: state.t });
  }
  // Until the topology has it, it is shown only for a while: it may have gone already.
  const consumer = state.consumers.get(id);
  if (consumer.isUnknown) consumer.gone = state.t;
  return id;
}

/** @param {string | null} target  the id of an exchange; or of a stream, for the stream protocol */
function publisherOf(state, client, target) {
  const id = publisherId(client);
  const publisher = state.publishers.get(id) || { id, name: client, targets: new Map() };
  publisher.gone = state.t;
  if (target !== null) publisher.targets.set(target, state.t);
  state.publishers.set(id, publisher);
  return id;
}

/** Let something move along nodes. Returns when it arrives. */
function move(state, key, nodes, fate, start, details, last = HOP) {
  const t1 = start + Math.max(1, nodes.length - 1) * last;
  state.motions.push({ id: ++state.number, key, nodes, fate, t0: start, t1, details });
  return t1;
}

function copyOf(state, event) {
  const place =
    event.exchange !== undefined && event.queue === undefined ? exchangeId(event.exchange) : queueId(event.queue);
  return state.copies.get(`${place}/${event.copy}`);
}

function addCopy(state, place, event, details, fate, busyUntil) {
  const key = `${place}/${event.copy}`;
  const copy = { key, node: place, place, number: event.copy, fate, details, busyUntil, history: [] };
  state.copies.set(key, copy);
  return copy;
}

/**
 * Messages a second on an arrow. What several exchanges send to one queue is divided as the messages that were shown.
 * @returns {{rate: number, t: number, isExact: boolean} | undefined}
 */
export function rateOf(state, arrow) {
  if (!arrow.to.startsWith("q:") || arrow.kind === "publishes") {
    const measured = state.rates.get(arrow.kind === "consumes" ? arrow.to : arrow.key);
    return measured && { ...measured, isExact: true };
  }
  const measured = state.rates.get(arrow.to);
  if (!measured) return undefined;
  let all = 0;
  for (const [key, count] of state.seen) if (key.endsWith(` ${arrow.to}`)) all += count;
  const links = [...state.links.values()].filter((link) => link.to === arrow.to).length;
  // With the stream protocol, messages come straight from their publishers.
  const isDirect = [...state.publishers.values()].some((publisher) => publisher.targets.has(arrow.to));
  if (!all) return links === 1 && !isDirect ? { ...measured, isExact: true } : undefined;
  const share = (state.seen.get(arrow.key) || 0) / all;
  return { rate: measured.rate * share, t: measured.t, isExact: share === 1 };
}

/** Let a published message go along its path to a queue or stream. */
function enter(state, message, queue, event, fate) {
  const path =
    message.exchange === null
      ? [message.origin]
      : (message.paths.get(queue) || [message.details.exchange, event.queue]).slice(0, -1).map(exchangeId);
  const arrives = move(state, `${queue}/${event.copy}`, [...path, queue], fate, message.arrives, message.details);
  addCopy(state, queue, event, message.details, fate, arrives);
}

const HANDLERS = {
  ...PLAY_KINDS,

  about(state, record) {
    state.about = record;
  },

  topology(state, record) {
    state.topology = record;
    const keep = (nodes, list, idOf, make) => {
      const found = new Map(list.map((each) => [idOf(each), each]));
      for (const id of [...nodes.keys()]) if (!found.has(id)) nodes.delete(id);
      for (const [id, each] of found) nodes.set(id, { ...(nodes.get(id) || {}), ...make(id, each) });
    };
    keep(
      state.exchanges,
      record.exchanges,
      (each) => exchangeId(each.name),
      (id, each) => ({ id, ...each }),
    );
    keep(
      state.queues,
      record.queues,
      (each) => queueId(each.name),
      (id, each) => ({ id, ...each }),
    );
    const there = new Set(record.consumers.map((each) => consumerId(each.name, each.queue)));
    for (const [id, consumer] of state.consumers) {
      if (!there.has(id) && !consumer.gone) consumer.gone = state.t;
    }
    for (const each of record.consumers) {
      const id = consumerId(each.name, each.queue);
      const { offset } = state.consumers.get(id) || {};
      state.consumers.set(id, { id, offset, ...each, queue: queueId(each.queue), gone: 0 });
    }
    for (const each of record.publishers || []) publisherOf(state, each.client, exchangeId(each.exchange));
    state.links = new Map();
    for (const each of record.links) {
      const from = exchangeId(each.from);
      const to = each.toExchange ? exchangeId(each.to) : queueId(each.to);
      state.links.set(`${from} ${to}`, { from, to, keys: each.keys, more: each.more });
    }
    for (const [key, copy] of state.copies) {
      if (copy.place.startsWith("q:") && !state.queues.has(copy.place)) state.copies.delete(key);
    }
  },

  snapshot(state, record) {
    state.copies = new Map();
    state.motions = [];
    for (const each of record.waiting) {
      if (each.queue === undefined) {
        const copy = addCopy(state, exchangeOf(state, each.exchange), each, each.details, "delayed", 0);
        copy.until = each.until;
      } else {
        const queue = queueOf(state, each.queue);
        const isStream = state.queues.get(queue).type === "stream";
        const copy = addCopy(
          state,
          queue,
          each,
          each.details,
          isStream ? "stream" : each.redelivered ? "requeued" : "ready",
          0,
        );
        if (each.consumer !== undefined) {
          copy.node = consumerOf(state, each.consumer, each.queue);
          copy.fate = "unacknowledged";
        }
      }
    }
  },

  moved(state, record) {
    const measure = (key, count) => {
      const before = state.counts.get(key);
      if (!before || before.count > count) {
        state.counts.set(key, { count, t: record.t });
      } else if (record.t - before.t >= RATE_OVER) {
        state.rates.set(key, { rate: ((count - before.count) * 1000) / (record.t - before.t), t: record.t });
        state.counts.set(key, { count, t: record.t });
      }
    };
    for (const [name, [ready, unacked, count]] of Object.entries(record.queues)) {
      const queue = state.queues.get(queueId(name));
      if (queue) Object.assign(queue, { ready, unacked });
      measure(queueId(name), count);
    }
    for (const [consumer, count] of record.taken) measure(consumerId(consumer), count);
    for (const [name, offset] of record.read || []) {
      const consumer = state.consumers.get(consumerId(name));
      if (consumer) consumer.offset = offset;
    }
    const published = new Map();
    for (const [client, exchange, count] of record.published) {
      const key = `${publisherOf(state, client, exchangeId(exchange))} ${exchangeId(exchange)}`;
      published.set(key, (published.get(key) || 0) + count);
    }
    for (const [client, stream, count] of record.appended || []) {
      const key = `${publisherOf(state, client, queueId(stream))} ${queueId(stream)}`;
      published.set(key, (published.get(key) || 0) + count);
    }
    for (const [key, count] of published) measure(key, count);
    for (const [key, rate] of state.rates) if (rate.t < record.t - 3 * RATE_OVER) state.rates.delete(key);
  },

  published(state, event) {
    const { from, paths, details } = event;
    if (paths.length === 1 && paths[0].length === 1) {
      // With the stream protocol, a message passes no exchange.
      const stream = queueOf(state, paths[0][0]);
      const origin = publisherOf(state, from.client, stream);
      state.messages.set(event.message, { details, from, origin, exchange: null, arrives: event.t, paths: new Map() });
      return;
    }
    const exchange = exchangeOf(state, details.exchange);
    let arrives = event.t;
    let origin = null;
    if (from.client !== undefined) {
      origin = publisherOf(state, from.client, exchange);
      arrives = move(state, `m${event.message}`, [origin, exchange], "ready", event.t, details);
    } else if (from.queue !== undefined) {
      origin = queueOf(state, from.queue);
      const dead = state.lastDead && state.lastDead.queue === origin ? state.lastDead.arrives : event.t;
      const fate = from.reason === "expired" ? "expired" : "dead";
      arrives = move(state, `m${event.message}`, [origin, exchange], fate, Math.max(dead, event.t), details);
    } else {
      state.copies.delete(`${exchange}/${from.copy}`);
    }
    const known = new Map(paths.map((path) => [queueId(path[path.length - 1]), path]));
    for (const [queue, path] of known) {
      const arrow = `${exchangeId(path[path.length - 2])} ${queue}`;
      state.seen.set(arrow, (state.seen.get(arrow) || 0) + 1);
    }
    state.messages.set(event.message, { details, from, origin, exchange, arrives, paths: known });
  },

  ready(state, event) {
    const message = state.messages.get(event.message);
    const queue = queueOf(state, event.queue);
    if (!message) return;
    enter(state, message, queue, event, "ready");
  },

  routed(state, event) {
    const message = state.messages.get(event.message);
    if (!message) return;
    const queue = queueOf(state, event.queue);
    const path = (message.paths.get(queue) || [message.details.exchange, event.queue]).slice(0, -1).map(exchangeId);
    const arrives = move(
      state,
      `m${event.message} ${queue}`,
      [...path, queue],
      "ready",
      message.arrives,
      message.details,
    );
    state.lately.set(`${queue} ${bodyKey(message.details)}`, arrives);
    if (state.lately.size > KEPT_MESSAGES) state.lately.delete(state.lately.keys().next().value);
  },

  taken(state, event) {
    const queue = queueOf(state, event.queue);
    const consumer = consumerOf(state, event.consumer, event.queue);
    const offset = event.details.headers["x-stream-offset"];
    if (Number.isInteger(offset)) state.consumers.get(consumer).offset = offset;
    const start = Math.max(event.t, state.lately.get(`${queue} ${bodyKey(event.details)}`) || 0);
    move(state, `${queue} ${event.t}`, [queue, consumer], "unacknowledged", start, event.details);
  },

  appended(state, event) {
    const message = state.messages.get(event.message);
    const queue = queueOf(state, event.queue);
    if (!message) return;
    enter(state, message, queue, event, "stream");
    const offsets = [...state.copies.values()].filter((each) => each.place === queue);
    for (const each of offsets.slice(0, -KEPT_OFFSETS)) state.copies.delete(each.key);
  },

  read(state, event) {
    const copy = copyOf(state, event);
    const consumer = consumerOf(state, event.consumer, event.queue);
    if (copy) {
      state.consumers.get(consumer).offset = event.offset ?? event.copy;
      const start = Math.max(event.t, copy.busyUntil);
      move(state, `${copy.key} ${consumer}`, [copy.place, consumer], "stream", start, copy.details);
    }
  },

  delayed(state, event) {
    const message = state.messages.get(event.message);
    if (!message) return;
    const copy = addCopy(state, exchangeOf(state, event.exchange), event, message.details, "delayed", message.arrives);
    copy.until = event.until;
  },

  returned(state, event) {
    const message = state.messages.get(event.message);
    if (message && message.origin) {
      move(
        state,
        `m${event.message}`,
        [message.exchange, message.origin],
        "returned",
        message.arrives,
        message.details,
      );
    }
  },

  dropped(state, event) {
    const message = state.messages.get(event.message);
    if (message) move(state, `m${event.message}`, [message.exchange], "dropped", message.arrives, message.details, END);
  },

  refused(state, event) {
    const message = state.messages.get(event.message);
    const nodes = message && [message.exchange, queueOf(state, event.queue)];
    if (message) move(state, `m${event.message}`, nodes, "dropped", message.arrives, message.details);
  },

  delivered(state, event) {
    const copy = copyOf(state, event);
    const consumer = consumerOf(state, event.consumer, event.queue);
    if (!copy) return;
    const start = Math.max(event.t, copy.busyUntil);
    const fate = event.no_ack ? "acknowledged" : "unacknowledged";
    copy.busyUntil = move(state, copy.key, [copy.place, consumer], fate, start, copy.details);
    if (event.no_ack) {
      move(state, copy.key, [consumer], "acknowledged", copy.busyUntil, copy.details, END);
      state.copies.delete(copy.key);
    } else {
      Object.assign(copy, { node: consumer, fate });
    }
  },

  acknowledged(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    move(state, copy.key, [copy.node], "acknowledged", Math.max(event.t, copy.busyUntil), copy.details, END);
    state.copies.delete(copy.key);
  },

  requeued(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    const nodes = [copy.node, copy.place];
    copy.busyUntil = move(state, copy.key, nodes, "requeued", Math.max(event.t, copy.busyUntil), copy.details);
    Object.assign(copy, { node: copy.place, fate: "requeued" });
  },

  "dead-lettered"(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    let arrives = Math.max(event.t, copy.busyUntil);
    if (copy.node !== copy.place)
      arrives = move(state, copy.key, [copy.node, copy.place], "dead", arrives, copy.details);
    state.lastDead = { queue: copy.place, arrives };
    state.copies.delete(copy.key);
  },

  discarded(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    const fate = { expired: "expired", maxlen: "dropped" }[event.reason] || "dead";
    move(state, copy.key, [copy.node], fate, Math.max(event.t, copy.busyUntil), copy.details, END);
    state.copies.delete(copy.key);
  },

  purged(state, event) {
    const queue = queueId(event.queue);
    for (const [key, copy] of state.copies) if (copy.node === queue && copy.fate !== "stream") state.copies.delete(key);
  },

  replied(state, event) {
    const server = [...state.consumers.keys()].find((id) => id.startsWith(`c:${event.from.connection} (`));
    const nodes = [server || publisherOf(state, event.from.client, null), publisherOf(state, event.to.client, null)];
    move(state, `m${event.message}`, nodes, "ready", event.t, event.details, 2 * HOP);
  },
};

/** Tells copies of the same message from others, roughly: copies have no number. */
const bodyKey = (details) =>
  JSON.stringify([details.exchange, details.routing_key, details.body, details.properties.message_id]);

function say(state, event) {
  const text = sentence(event);
  state.sentences.push({ n: ++state.number, t: event.t, text, message: event.message });
  if (state.sentences.length > KEPT_SENTENCES) state.sentences.shift();
  const copy = event.copy === undefined || event.what === "published" ? null : copyOf(state, event);
  if (copy) copy.history.push(text);
}
