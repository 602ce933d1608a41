// The state of the picture at one moment: the broker's topology, messages at rest, and messages that move. The state is
// made from records. The same records always give the same state, so the page can go back in time.
//
// Messages move faster on a broker than people can watch. The picture therefore shows events in the order of cause and
// effect, but often later than they happened: `t` of a record is the broker's time, and a motion's `t0` and `t1` are
// the times when it is shown. A play is a tutorial or drill that runs beside the picture (see play.js).

import { PLAY_KINDS } from "./play.js";
import { sentence, spoken } from "./sentences.js";

/** Milliseconds that a message takes from one node to the next, and for which the end of a message is shown. */
export const HOP = 450;
const END = 700;
/**
 * Messages that leave one node for the same other node are this many milliseconds apart, so that each can be seen. The
 * further the picture is behind, the shorter the pauses are. At LATEST milliseconds, there are no pauses.
 */
const PAUSE = 130;
const LATEST = 1500;
/**
 * What a client does is shown after the messages that it received before, but at most CAUSES milliseconds late. The
 * further the picture is behind, the faster messages move: at the fastest, in the fraction QUICKEST of the usual time.
 */
const CAUSES = 6000;
const QUICKEST = 0.25;
/**
 * If a consumer's prefetch limit or credit is at least this large, its next message does not wait until the picture has
 * shown the acknowledgement of an earlier one.
 */
const LARGE_LIMIT = 10;
/**
 * If a message was in its queue for more than this many milliseconds before an unknown consumer gets it, the message is
 * taken to be older than the consumer.
 */
const OLDER = 100;
const KEPT_MESSAGES = 1000;
const KEPT_MOTIONS = 1500;
const KEPT_SENTENCES = 200;
const KEPT_OFFSETS = 12;
/**
 * Milliseconds for which a publisher or consumer that has gone is still shown. A publisher has not gone while the
 * broker lists its channel. In a play, a client stays while the program in its terminal runs, and until the commands of
 * the next scene begin.
 */
const LINGERS = 2000;
/**
 * Milliseconds over which a rate is measured. It is then shown for twice as long or, if that is longer, for two of the
 * intervals at which the broker reports its counts, but never for more than LONGEST_RATE milliseconds.
 */
const RATE_OVER = 1500;
const LONGEST_RATE = 5000;

/**
 * @typedef {object} Copy  a message in one queue, or in a delayed exchange
 * @property {string} key
 * @property {string} node      where it is: the id of a node
 * @property {string} place     the id of its queue or delayed exchange
 * @property {number} number    orders the copies of a queue
 * @property {string} fate
 * @property {any} details
 * @property {number} busyUntil  when the picture shows it arriving at its node
 * @property {number} since      when it came to its queue or exchange, by the broker's clock
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
    /** When something last left one node for another, by the ids of both. */
    left: new Map(),
    /** By consumer: when its last acknowledgement, or message that it gave back, is seen to arrive at the queue. */
    settled: new Map(),
    /** By connection: when a client is seen to receive what it received. What it then does or prints is shown later. */
    parties: new Map(),
    /** For consumers that are shown as an earlier node of the same client: the node's id, by the consumer's id. */
    aliases: new Map(),
    /** Records that take effect later, in order, each with its time. */
    due: [],
    sentences: [],
    counts: new Map(),
    rates: new Map(),
    /** When the broker last reported counts. */
    countedAt: 0,
    /** By queue: how many of its messages have been shown on each arrow that leads to it. */
    seen: new Map(),
    lastDead: null,
    lately: new Map(),
    topology: null,
    number: 0,
    play: null,
    /** The time of the last event, if withoutEndings() has removed what followed. From then on, publishers stay. */
    rests: Infinity,
  };
}

/**
 * mqtool itself subscribes with this ID to look at the ends of a stream, for example to compute how far a reader is
 * behind. In a play, this consumer is hidden, because people would mistake it for a reader.
 */
const isLook = ({ play }, name) => play && name?.endsWith("/stream.subid-255");

/** Apply a record to a state. */
export function apply(state, record) {
  if (isLook(state, record.consumer)) return;
  // Records that are due by then come first. Otherwise, a command would appear before the output of the previous one.
  if (state.due.length) advanceTo(state, record.t);
  state.t = Math.max(state.t, record.t);
  // This must come before the handler, after which an acknowledged message is no longer known.
  const told = record.kind === "event" ? toldOf(state, record) : "";
  const at = whenShown(state, record);
  if (at > record.t) later(state, at, { ...record, scene: state.play.scene });
  else HANDLERS[record.kind === "event" ? record.what : record.kind]?.(state, record);
  if (record.kind === "event") say(state, record, told);
  prune(state);
}

/**
 * Compare two records by time. In the same millisecond, records of terminals come last: a program's output, or the next
 * command, may reach the page before the broker's event that caused it.
 */
export const inOrder = (one, other) =>
  one.t - other.t || Number(OF_TERMINALS.has(one.kind)) - Number(OF_TERMINALS.has(other.kind));

const OF_TERMINALS = new Set(["typed", "printed", "finished"]);

/** When a record is shown. In a play, output and results are shown only after the messages that caused them. */
function whenShown(state, { kind, terminal, t }) {
  if (!state.play) return t;
  if (OF_TERMINALS.has(kind)) {
    const known = kind === "printed" ? [...state.parties.values()].filter(({ client }) => client === terminal) : [];
    // Lines of a terminal stay in their order.
    const before = state.due.filter((each) => each.record.terminal === terminal).map(({ at }) => at);
    return Math.max(t, ...known.map(({ told }) => told), ...before);
  }
  if (kind === "measured") {
    // Charts show how many messages wait, so they must change together with the queues in the picture.
    const toQueues = [...arrivals(state)].filter(([node]) => node.startsWith("q")).map(([, at]) => at);
    const before = state.due.filter((each) => each.record.kind === kind).map(({ at }) => at);
    return Math.max(t, ...toQueues, ...before);
  }
  return CONCLUSIONS.has(kind) ? settlesAt(state) : t;
}

const CONCLUSIONS = new Set(["answered", "checked", "ends"]);

/** Whether a motion is an acknowledgement on its way from a consumer to the queue. */
export const isAck = ({ nodes, fate }) => fate === "acknowledged" && nodes.length > 1 && nodes.at(-1)[0] === "q";

/** By node: when the last of the messages that still move is seen to arrive. */
function arrivals(state) {
  const found = new Map();
  for (const { t1, nodes, fate } of state.motions) {
    // An acknowledgement is not a message that arrives in the queue, so it counts for the consumer.
    const node = isAck({ nodes, fate }) ? nodes[0] : nodes[nodes.length - 1];
    if (t1 > (found.get(node) ?? state.t)) found.set(node, t1);
  }
  return found;
}

/** The time from which nothing moves and nothing is due. */
const settlesAt = (state) => Math.max(state.t, ...arrivals(state).values(), ...state.due.map(({ at }) => at));

function showDue(state, now) {
  while (state.due.length && state.due[0].at <= now) {
    const { record } = state.due.shift();
    HANDLERS[record.kind](state, record);
  }
}

/** Show the end of everything that still moves or is due, at once. */
function settle(state) {
  showDue(state, Infinity);
  state.motions = [];
  for (const copy of state.copies.values()) copy.busyUntil = Math.min(copy.busyUntil, state.t);
  for (const message of state.messages.values()) {
    message.arrives = Math.min(message.arrives, state.t);
    delete message.done;
  }
  for (const publisher of state.publishers.values()) publisher.gone = Math.min(publisher.gone, state.t);
  for (const known of [state.left, state.settled, state.parties, state.lately, state.rates]) known.clear();
  state.lastDead = null;
}

function later(state, at, record) {
  let index = state.due.length;
  while (index && state.due[index - 1].at > at) index -= 1;
  state.due.splice(index, 0, { at, record });
}

/**
 * Note when a client is seen to receive something. With `isTold`, such as for a confirm, only the client's output waits
 * for it, not what the client does next.
 */
function reached(state, { client, connection }, at, isTold = false) {
  const key = connection || client;
  const { until, told } = state.parties.get(key) ?? { until: 0, told: 0 };
  state.parties.delete(key); // so that the first entry is the oldest
  state.parties.set(key, { client, until: isTold ? until : Math.max(until, at), told: Math.max(told, at) });
  if (state.parties.size > KEPT_MESSAGES) state.parties.delete(state.parties.keys().next().value);
}

/** When a client is seen to do something: after it has received what it received before, but at most CAUSES late. */
const acts = (state, { client, connection }, t) =>
  Math.max(t, Math.min(state.parties.get(connection || client)?.until ?? 0, t + CAUSES));

const namesIn = (topology) =>
  [topology.queues, topology.consumers].flatMap((list, index) => list.map(({ name }) => `${index} ${name}`));

/**
 * The records of a recording, without what happens when its programs end. A play then ends with the last state in which
 * messages moved, not with an empty picture. If a scene or command follows the last message, nothing is removed.
 */
export function withoutEndings(records) {
  const ends = records.flatMap((record, index) => (record.kind === "begins" ? [index] : []));
  return [0, ...ends].flatMap((from, part, all) => withoutEnding(records.slice(from, all[part + 1])));
}

/** A queue that is deleted together with its consumer is reported as purged, so that event may be part of an ending. */
const isOfMessage = ({ kind, what }) => kind === "event" && what !== "purged";
const isDeletion = ({ kind, what, queue }) => kind === "event" && what === "purged" && isGenerated(queue);

function withoutEnding(records) {
  const last = records.findLastIndex(isOfMessage);
  const later = records.slice(last + 1);
  if (last < 0 || later.some(({ kind }) => kind === "scene" || kind === "typed")) return records;
  let known = records.slice(0, last).findLast((record) => record.kind === "topology");
  let isOver = false;
  const kept = later.filter((record) => {
    isOver ||= isDeletion(record);
    if (isDeletion(record)) return false;
    if (record.kind !== "topology" || !known) return true;
    const names = new Set(namesIn(record));
    isOver ||= namesIn(known).some((name) => !names.has(name));
    if (!isOver) known = record;
    return !isOver;
  });
  return isOver ? [...records.slice(0, last + 1), { kind: "rests", t: records[last].t }, ...kept] : records;
}

/**
 * Delay the records of a recording, so that each scene and each play begins only when everything before it has been
 * shown to its end. Also returns the time `end`, when the last messages have arrived.
 */
export function withPauses(records) {
  const state = emptyState();
  let pause = 0;
  const moved = records.map((record) => {
    if (record.kind === "scene" || record.kind === "begins") {
      const all = record.kind === "scene" ? [...state.publishers.values(), ...state.consumers.values()] : [];
      const gone = all.map((each) => each.gone + LINGERS);
      pause += Math.max(0, Math.ceil(Math.max(settlesAt(state), ...gone)) + 1 - record.t - pause);
    }
    const later = { ...record, t: record.t + pause, ...(record.until && { until: record.until + pause }) };
    apply(state, later);
    return later;
  });
  return { records: moved, end: settlesAt(state) };
}

/** Records that restore a state, except for its motions. A recording that begins with this state begins with them. */
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
  const queues = Object.fromEntries(
    [...state.queues].map(([id, { name, ready, unacked }]) => [
      name,
      [ready, unacked, state.counts.get(id)?.count ?? 0],
    ]),
  );
  const credit = [...state.consumers.values()].flatMap((each) => (each.credit ? [[each.name, each.credit]] : []));
  const at = (record) => ({ ...record, t: state.t });
  return state.topology === null
    ? []
    : [
        at(state.about),
        at(state.topology),
        at({ kind: "snapshot", waiting }),
        at({ kind: "moved", queues, taken: [], published: [], credit }),
      ];
}

/**
 * What is shown at one moment. The counts are those of the drawn messages, so that counts and messages always agree.
 * @typedef {object} Moment
 * @property {number} now
 * @property {any[]} moving                 motions
 * @property {Map<string, any[]>} resting   by node: copies, and motions of messages that wait
 * @property {Map<string, {ready: number, unacked: number}>} counts  by queue; includes messages that are only counted
 */

/** @returns {Moment} */
export function momentOf(state, now) {
  const moving = [];
  const resting = new Map();
  const rest = (node, message) => {
    if (!resting.has(node)) resting.set(node, []);
    resting.get(node).push(message);
  };
  const isUnderWay = new Set();
  for (const motion of state.motions) {
    if (motion.t1 <= now) continue;
    isUnderWay.add(motion.key);
    if (motion.t0 > now) continue;
    if (motion.rests) rest(motion.nodes[0], motion);
    else moving.push(motion);
  }
  for (const copy of state.copies.values()) {
    if (copy.busyUntil <= now && !isUnderWay.has(copy.key)) rest(copy.node, copy);
  }
  const counts = new Map();
  for (const queue of state.queues.values()) counts.set(queue.id, { ...queue.uncopied });
  const count = (queue, what) => {
    if (counts.has(queue)) counts.get(queue)[what] += 1;
  };
  for (const [node, messages] of resting) {
    for (const { fate, place } of messages) {
      if (fate === "unacknowledged") count(place, "unacked");
      else if (WAITING.has(fate)) count(node, "ready");
    }
  }
  for (const { fate, place } of moving) if (fate === "unacknowledged" && place) count(place, "unacked");
  return { now, moving, resting, counts };
}

const WAITING = new Set(["ready", "requeued", "stream"]);

function prune(state) {
  if (state.motions.length > KEPT_MOTIONS) state.motions.splice(0, state.motions.length - KEPT_MOTIONS);
  if (state.motions.length && state.motions[0].t1 < state.t - 1000) {
    state.motions = state.motions.filter((each) => each.t1 >= state.t - 1000);
  }
  while (state.messages.size > KEPT_MESSAGES) state.messages.delete(state.messages.keys().next().value);
  advanceTo(state, state.t);
}

/**
 * Apply the records that are due by now. Remove old rates, deleted queues and exchanges, and publishers and consumers
 * that have been gone for a while. Messages may be shown seconds after they moved on the broker, so a node stays until
 * its messages have been shown.
 */
export function advanceTo(state, now) {
  showDue(state, now);
  for (const [key, { until }] of state.rates) if (until <= now) state.rates.delete(key);
  const time = Math.min(now, state.rests);
  for (const nodes of [state.queues, state.exchanges]) {
    for (const [id, { isDeleted }] of nodes) if (isDeleted && !isStillSeen(state, id, now)) nodes.delete(id);
  }
  for (const nodes of [state.publishers, state.consumers]) {
    for (const [id, node] of nodes) {
      if (!node.gone || holdsAny(state, id) || hasMotion(state, id, time)) continue;
      // A consumer does not stay without its queue: nothing would show what it consumed.
      const hasQueue = node.queue === undefined || state.queues.has(node.queue);
      if (hasQueue && (node.isListed || isRunning(state, node) || hasReplies(state, node))) continue;
      // Clients that have gone since the scene's commands began stay until those of the next scene begin.
      if (hasQueue && node.gone >= state.play?.goesOn) continue;
      // After the end of a play, publishers stay, but not consumers that are known to have gone.
      const since = node.queue === undefined || node.isUnknown ? time : now;
      if (node.gone >= since - LINGERS && hasQueue) continue;
      nodes.delete(id);
      state.settled.delete(id);
    }
  }
}

/** Whether a publisher or consumer was still there when the program that now runs in its terminal was started. */
const isRunning = ({ play }, { name, label, gone }) =>
  play?.terminals.some((each) => each.name === (label ?? name) && each.runs !== null && each.runs <= gone);

/** Whether a play's publisher also has a consumer on a queue with a generated name. Both are drawn as one box. */
const hasReplies = ({ play, consumers }, { name }) =>
  play && [...consumers.values()].some(({ label, queue }) => label === name && isGenerated(queue));

/** Whether messages are still seen to move at a queue or exchange, or at the queue's consumers. */
const isStillSeen = (state, id, time) =>
  hasMotion(state, id, time) ||
  [...state.consumers.values()].some((each) => each.queue === id && hasMotion(state, each.id, time));

/** Whether a message is seen to move to, from or at a node after this time. */
export const hasMotion = (state, node, time) =>
  state.motions.some(({ t1, nodes }) => t1 > time && nodes.includes(node));

/**
 * Whether a node has messages. A cancelled consumer keeps its messages until it acknowledges them or its channel ends.
 */
function holdsAny(state, node) {
  for (const copy of state.copies.values()) if (copy.node === node) return true;
  return false;
}

const exchangeId = (name) => `x:${name}`;
const queueId = (name) => `q:${name}`;
const publisherId = (name) => `p:${name}`;
const ownConsumerId = (name, queue) => (name === null ? `c:get ${queue}` : `c:${name}`);

/** The id of a consumer's node. */
function consumerId(state, name, queue = "") {
  const id = ownConsumerId(name, queue);
  return state.aliases.get(id) ?? id;
}

/**
 * The id of a new consumer's node. If a client reconnects or consumes again, this is the id of the client's earlier
 * node. In a play, consumers with the same label are one client, because each terminal is one client. Elsewhere,
 * several clients may have the same name. A channel may have several consumers at once if the topology lists them.
 */
function newConsumerId(state, name, queue, label, isListed) {
  const id = consumerId(state, name, queue);
  if (name === null || state.consumers.has(id)) return id;
  const [channel] = name.split("/");
  const isCalledSo = (each) => each.label === label && (state.play || (each.gone && !each.isUnknown));
  const isOfChannel = (each) => each.name?.startsWith(`${channel}/`) && (each.gone || !isListed);
  const found = [...state.consumers.values()].filter(
    (each) => each.queue === queueId(queue) && (isCalledSo(each) || isOfChannel(each)),
  );
  if (found.length !== 1) return id;
  state.aliases.set(id, found[0].id);
  if (state.aliases.size > KEPT_MESSAGES) state.aliases.delete(state.aliases.keys().next().value);
  return found[0].id;
}

/** Outside a play, consumers that the topology lists at the same time are different: give each of them its own node. */
function tellApart(state, consumers) {
  if (state.play) return;
  const ids = new Set(consumers.map(({ name, queue }) => ownConsumerId(name, queue)));
  for (const id of [...ids]) {
    const alias = state.aliases.get(id);
    if (ids.has(alias)) state.aliases.delete(id);
    ids.add(alias);
  }
}

function exchangeOf(state, name) {
  const id = exchangeId(name);
  if (!state.exchanges.has(id))
    state.exchanges.set(id, { id, name, type: name === "" ? "direct" : "", alternate: null });
  return id;
}

/**
 * The counts of a new queue. `ready` and `unacked` are the broker's. `uncopied` is what the picture shows of the
 * messages that are only counted, not known one by one. `counted` is the latest value of `uncopied`, as JSON; it may be
 * shown later.
 */
const newCounts = () => ({ ready: 0, unacked: 0, uncopied: { ready: 0, unacked: 0 }, counted: "" });

/**
 * Remember a queue's first consumer, after which a queue with a generated name is called. `nth` numbers the queues of
 * consumers with the same name, such as a client that was started again.
 */
function belongs(state, queue, label) {
  const found = state.queues.get(queue);
  if (!found || found.owner !== undefined) return;
  const others = [...state.queues.values()].filter(({ name, owner }) => owner === label && isGenerated(name));
  Object.assign(found, { owner: label, nth: Math.max(0, ...others.map(({ nth }) => nth)) + 1 });
}

/** The keys of an arrow as one text. The keys of a headers exchange contain commas, so semicolons separate them. */
export const joinedKeys = (keys) => keys.join(keys.some((key) => key.includes(", ")) ? "; " : ", ");

/** Whether a name was made by a program or by the broker. */
export const isGenerated = (name) => /\bgen-|^amq_|[0-9a-f]{8}-[0-9a-f]{4}-|[0-9a-f]{20}/.test(name);

/** The label of a queue: its name, or a description if the name was generated. */
export function labelOf({ name, owner, nth }) {
  if (!isGenerated(name)) return name;
  return owner === undefined ? "temporary queue" : `${owner}'s queue${nth > 1 ? ` ${nth}` : ""}`;
}

const countsOf = ({ ready, unacked, uncopied, counted } = newCounts()) => ({ ready, unacked, uncopied, counted });

/** Remove messages that a restarted broker has lost, for which there are no events: transient messages first. */
function forgetLost(state, queue, count) {
  const isPersistent = ({ details }) => Number(details.properties.delivery_mode === 2);
  const waiting = [...state.copies.values()].filter(({ node, place }) => node === queue && place === queue);
  waiting.sort((one, other) => isPersistent(one) - isPersistent(other) || one.number - other.number);
  for (const copy of waiting.slice(0, count)) vanish(state, copy, "dropped", state.t);
}

/** Show that a message ends at the node where it is. */
function vanish(state, copy, fate, t) {
  move(state, copy.key, [copy.node], fate, Math.max(t, copy.busyUntil), { details: copy.details }, END);
  state.copies.delete(copy.key);
}

/** Compare the broker's counts with the messages that are known. Both are from the same moment. */
function recount(state) {
  const known = new Map();
  for (const { place, node } of state.copies.values()) {
    if (!known.has(place)) known.set(place, { ready: 0, unacked: 0 });
    known.get(place)[node === place ? "ready" : "unacked"] += 1;
  }
  const arrive = arrivals(state);
  for (const queue of state.queues.values()) {
    const { ready, unacked } = known.get(queue.id) ?? { ready: 0, unacked: 0 };
    if (ready > queue.ready) forgetLost(state, queue.id, ready - queue.ready);
    const uncopied = { ready: Math.max(0, queue.ready - ready), unacked: Math.max(0, queue.unacked - unacked) };
    const counted = JSON.stringify(uncopied);
    if (queue.counted === counted) continue;
    queue.counted = counted;
    // Messages that are only counted are not shown before the known messages have arrived.
    later(state, arrive.get(queue.id) ?? state.t, { kind: "counted", queue: queue.id, uncopied });
  }
}

function queueOf(state, name) {
  const id = queueId(name);
  if (!state.queues.has(id)) {
    state.queues.set(id, { id, name, type: "", deadLetterExchange: null, arguments: {}, ...newCounts() });
  }
  return id;
}

/**
 * @param {{client: string} | null} [client]  the consumer's client, if the event names it
 * @param {number} [since]  when the message that it gets came to the queue
 */
function consumerOf(state, name, queue, client, since = -Infinity) {
  // A consumer's name begins with the name of its connection: "CLIENT -> BROKER".
  const label =
    client?.client ?? (name === null ? "basic.get" : name.includes(" -> ") ? name.split(" -> ")[0] : "consumer");
  const id = newConsumerId(state, name, queue, label, false);
  if (!state.consumers.has(id)) {
    belongs(state, queueId(queue), label);
    const known = { id, name, label, queue: queueId(queue), since: state.t };
    state.consumers.set(id, { ...known, prefetch: 0, isUnknown: true, gone: state.t });
    if (since < state.t - OLDER) awaitMessages(state, id);
  }
  // Until the topology lists the consumer, it is shown only for a while, because it may have gone already.
  const consumer = state.consumers.get(id);
  if (consumer.isUnknown) consumer.gone = state.t;
  return id;
}

/**
 * In a play, show a new consumer only after the messages that are on their way to its queue have been seen to wait
 * there: on the broker, they were in the queue before the consumer came.
 */
function awaitMessages(state, id) {
  const consumer = state.consumers.get(id);
  const arrive = state.play && arrivals(state).get(consumer.queue);
  if (!arrive) return;
  consumer.appears = Math.min(arrive + END, state.t + CAUSES);
  later(state, consumer.appears, { kind: "appears", consumer: id });
}

/** When a consumer is seen to get something that it got at this time: not before the consumer itself is shown. */
const gets = ({ consumers }, id, t) => Math.max(t, consumers.get(id)?.appears ?? 0);

/** @param {string | null} target  the id of an exchange; or of a stream, for the stream protocol */
function publisherOf(state, client, target) {
  const id = publisherId(client);
  const publisher = state.publishers.get(id) || { id, name: client, since: state.t, targets: new Map() };
  publisher.gone = state.t;
  if (target !== null) publisher.targets.set(target, state.t);
  state.publishers.set(id, publisher);
  return id;
}

/** In a play, remove a queue with a generated name once its last message has arrived, unless a consumer uses it. */
function forgetUnused(state, id, uses = ({ gone }) => !gone) {
  const queue = state.queues.get(id);
  const isUsed = [...state.consumers.values()].some((each) => each.queue === id && uses(each));
  if (state.play && isGenerated(queue.name) && !isUsed) queue.isDeleted = true;
}

/**
 * Move something along nodes. Returns the time when it arrives.
 * @param {{details?: any, place?: string, offset?: number, unknown?: string, confirms?: number}} [message]  what is
 *   known of it: the details of a message; the queue in which it counts as unacknowledged; an offset; the name of a
 *   queue that does not exist; the number of messages that it confirms
 * @param {number} [last]  milliseconds from one node to the next
 */
function move(state, key, nodes, fate, start, message = {}, last = HOP) {
  const pace = nodes.length > 1 ? Math.max(QUICKEST, 1 - Math.max(0, start - state.t) / CAUSES) : 1;
  const t1 = start + Math.max(1, nodes.length - 1) * last * pace;
  state.motions.push({ id: ++state.number, key, nodes, fate, t0: start, t1, ...message });
  return t1;
}

/** The time when something leaves: at `wanted`, or a little after the last thing that left `from` for `to`. */
function inTurn(state, from, to, wanted) {
  const way = `${from} ${to}`;
  const before = state.left.get(way) ?? 0;
  const pause = PAUSE * (1 - Math.min(1, Math.max(0, before - wanted) / LATEST));
  const start = Math.max(wanted, before + pause);
  state.left.delete(way); // so that the first entry is the oldest
  state.left.set(way, start);
  if (state.left.size > KEPT_MESSAGES) state.left.delete(state.left.keys().next().value);
  return start;
}

/** Show something waiting at a node. */
function wait(state, key, node, fate, t0, t1, message) {
  if (t0 < t1) state.motions.push({ id: ++state.number, key, nodes: [node], fate, t0, t1, ...message, rests: true });
}

/**
 * The time when a copy leaves its node: after it has arrived there, in turn, not before `notBefore`, and for a consumer
 * only when its prefetch limit or credit is seen to allow it (but at most CAUSES late). Until then, it is shown
 * waiting.
 */
function leaves(state, copy, to, t, notBefore = 0) {
  const may = Math.max(t, copy.busyUntil);
  const { prefetch, credit, isUnknown } = state.consumers.get(to) ?? {};
  const limit = prefetch ?? credit ?? 1;
  const isLimited = isUnknown || (limit > 0 && limit < LARGE_LIMIT);
  const settled = isLimited ? (state.settled.get(to) ?? 0) : 0;
  const wanted = gets(state, to, Math.max(may, Math.min(Math.max(settled, notBefore), t + CAUSES)));
  const start = inTurn(state, copy.node, to, wanted);
  const { details, place, number } = copy;
  wait(state, copy.key, copy.node, copy.fate, may, start, { details, place, number });
  return start;
}

/** Whether the picture is so far behind with a message that it skips the next motion, as in a loop of requeues. */
const isFarBehind = ({ busyUntil }, { t }) => busyUntil > t + 2 * CAUSES;

function copyOf(state, event) {
  const place =
    event.exchange !== undefined && event.queue === undefined ? exchangeId(event.exchange) : queueId(event.queue);
  return state.copies.get(`${place}/${event.copy}`);
}

function addCopy(state, place, event, details, fate, busyUntil) {
  const key = `${place}/${event.copy}`;
  const [number, since] = [event.copy, state.t];
  const copy = { key, node: place, place, number, fate, details, busyUntil, since, history: [] };
  state.copies.set(key, copy);
  return copy;
}

/**
 * The label that explains how an exchange routes a message: the routing key, or the headers for a headers exchange. It
 * is empty for a fanout exchange, which ignores both, and for the default exchange, where the key is the queue's name.
 */
export function addressOf(state, { exchange, routing_key, headers }) {
  const type = state.exchanges.get(exchangeId(exchange))?.type;
  if (exchange === "" || !type || type === "fanout") return "";
  if (type !== "headers") {
    if (routing_key === "") return "(empty key)";
    // Without quotes, a key of dots alone would look like dirt.
    return /[\p{L}\p{N}]/u.test(routing_key) ? routing_key : `“${routing_key}”`;
  }
  const own = Object.entries(headers).filter(([name]) => !name.startsWith("x-"));
  return own.map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
}

/**
 * Messages per second on an arrow. If several arrows lead to a queue, the queue's rate is divided among them in the
 * same proportions as the messages that were shown on them.
 * @returns {{rate: number, isExact: boolean} | undefined}
 */
export function rateOf(state, arrow) {
  if (!arrow.to.startsWith("q:") || arrow.kind === "publishes") {
    const measured = state.rates.get(arrow.kind === "consumes" ? arrow.to : arrow.key);
    return measured && { ...measured, isExact: true };
  }
  const measured = state.rates.get(arrow.to);
  if (!measured) return undefined;
  const seen = state.seen.get(arrow.to);
  const links = [...state.links.values()].filter((link) => link.to === arrow.to).length;
  // With the stream protocol, messages come directly from their publishers.
  const isDirect = [...state.publishers.values()].some((publisher) => publisher.targets.has(arrow.to));
  if (!seen) return links === 1 && !isDirect ? { ...measured, isExact: true } : undefined;
  const share = (seen.get(arrow.key) || 0) / [...seen.values()].reduce((sum, count) => sum + count, 0);
  return { rate: measured.rate * share, isExact: share === 1 };
}

/** The exchanges that an unroutable message passes: this one, and those to which bindings certainly lead. */
function passedBy(state, exchange, key) {
  // The type by which a delayed exchange routes is not known. An empty binding key is taken to mean fanout.
  const isFanout = ({ from, keys }) => {
    const type = state.exchanges.get(from)?.type;
    return type === "fanout" || (type === "x-delayed-message" && keys.includes(""));
  };
  const between = [...state.links.values()].filter(({ to }) => to.startsWith("x:"));
  const certain = between.filter((link) => isFanout(link) || link.keys.includes(key));
  const passed = [exchange];
  let next = exchange;
  while (next !== undefined) {
    next = certain.find(({ from, to }) => from === passed.at(-1) && !passed.includes(to))?.to;
    if (next !== undefined) passed.push(next);
  }
  return passed;
}

/** Move a published message along its path to a queue or stream. */
function enter(state, message, queue, event, fate) {
  const path =
    message.exchange === null
      ? [message.origin]
      : (message.paths.get(queue) || [message.details.exchange, event.queue]).slice(0, -1).map(exchangeId);
  // Messages leave an exchange as far apart as they came, so only those that pass none need a pause.
  const start = path[0] === message.origin ? inTurn(state, path[0], queue, message.arrives) : message.arrives;
  const arrives = move(state, `${queue}/${event.copy}`, [...path, queue], fate, start, { details: message.details });
  addCopy(state, queue, event, message.details, fate, arrives);
  message.done = Math.max(message.done ?? 0, arrives);
  if (message.from.confirms) reached(state, message.from, arrives, true);
}

/**
 * Reasons why all messages of a consumer are requeued together: its channel, connection or link has ended or, over
 * AMQP 1.0, it releases them before that.
 */
const ENDS = new Set(["closed", "lost", "timed_out", "detached", "released"]);

const HANDLERS = {
  ...PLAY_KINDS,

  about(state, record) {
    state.about = record;
  },

  goes_on(state, record) {
    // If the reader continues while messages still move, show the end of these motions at once.
    if (state.play?.waits) settle(state);
    PLAY_KINDS.goes_on(state, record);
    // Forget temporary queues that were created and deleted between two reads of the topology.
    const listed = new Set(state.topology?.queues.map(({ name }) => queueId(name)));
    const uses = (consumer) => !consumer.gone || isRunning(state, consumer);
    for (const { id } of state.queues.values()) if (!listed.has(id)) forgetUnused(state, id, uses);
  },

  finished(state, record) {
    PLAY_KINDS.finished(state, record);
    // The latest topology may have been read before the program ended, and still list its consumers.
    for (const consumer of state.consumers.values()) {
      if (consumer.label !== record.terminal || !state.queues.get(consumer.queue)?.isPurged) continue;
      consumer.gone ||= state.t;
      forgetUnused(state, consumer.queue);
    }
  },

  rests(state, record) {
    state.rests = record.t;
  },

  counted(state, { queue, uncopied }) {
    const found = state.queues.get(queue);
    if (found && !found.isDeleted) found.uncopied = uncopied;
  },

  passed(state, { queue }) {
    const found = state.queues.get(queue);
    if (found) found.uncopied = { ...found.uncopied, ready: found.uncopied.ready + 1 };
  },

  appears(state, { consumer }) {
    const found = state.consumers.get(consumer);
    if (found) found.appears = 0;
  },

  stores(state, { queue, stored }) {
    const found = state.queues.get(queue);
    if (found) found.stored = stored;
  },

  reads(state, { consumer, offset }) {
    const found = state.consumers.get(consumer);
    if (found) found.offset = offset;
  },

  topology(state, given) {
    const record = { ...given, consumers: given.consumers.filter(({ name }) => !isLook(state, name)) };
    state.topology = record;
    const keep = (nodes, list, idOf, make) => {
      const found = new Map(list.map((each) => [idOf(each), each]));
      for (const [id, node] of nodes) {
        if (found.has(id)) continue;
        // A deleted node stays until its last message has been seen to arrive.
        if (isStillSeen(state, id, state.t)) Object.assign(node, { isDeleted: true }, node.uncopied && newCounts());
        else nodes.delete(id);
      }
      for (const [id, each] of found) nodes.set(id, { ...(nodes.get(id) || {}), ...make(id, each), isDeleted: false });
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
      // The counts in the topology may be newer than the latest event, so keep the known ones.
      (id, each) => ({ id, owner: state.queues.get(id)?.owner, ...each, ...countsOf(state.queues.get(id)) }),
    );
    tellApart(state, record.consumers);
    const there = new Set(record.consumers.map((each) => consumerId(state, each.name, each.queue)));
    for (const [id, consumer] of state.consumers) {
      if (!there.has(id) && !consumer.gone) consumer.gone = state.t;
    }
    for (const each of record.consumers) {
      const id = newConsumerId(state, each.name, each.queue, each.label, true);
      const known = state.consumers.get(id);
      const { offset, credit, since = state.t, appears } = known ?? {};
      const kept = { id, offset, credit, since, appears };
      state.consumers.set(id, { ...kept, ...each, queue: queueId(each.queue), gone: 0 });
      if (!known) awaitMessages(state, id);
      belongs(state, queueId(each.queue), each.label);
    }
    for (const each of record.publishers || []) publisherOf(state, each.client, exchangeId(each.exchange));
    const before = state.links;
    state.links = new Map();
    for (const each of record.links) {
      const from = exchangeId(each.from);
      const to = each.toExchange ? exchangeId(each.to) : queueId(each.to);
      state.links.set(`${from} ${to}`, { from, to, keys: each.keys, more: each.more });
    }
    // A node that is deleted but still drawn keeps its bindings.
    const isDeleted = (id) => (state.queues.get(id) ?? state.exchanges.get(id))?.isDeleted;
    for (const [key, link] of before) {
      if (!state.links.has(key) && (isDeleted(link.from) || isDeleted(link.to))) state.links.set(key, link);
    }
    for (const [key, copy] of state.copies) {
      if (copy.place.startsWith("q:") && (state.queues.get(copy.place)?.isDeleted ?? true)) state.copies.delete(key);
    }
    const isGone = (id) => !id.startsWith("p:") && !state.queues.has(id) && !state.consumers.has(id);
    for (const known of [state.seen, state.counts]) for (const id of known.keys()) if (isGone(id)) known.delete(id);
  },

  snapshot(state, record) {
    state.copies = new Map();
    state.messages = new Map(); // a broker that has restarted uses the same numbers again
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
    const lasts = Math.min(LONGEST_RATE, 2 * Math.max(RATE_OVER, record.t - state.countedAt));
    state.countedAt = record.t;
    const measure = (key, count) => {
      const before = state.counts.get(key);
      if (!before || before.count > count) {
        state.counts.set(key, { count, t: record.t });
      } else if (record.t - before.t >= RATE_OVER) {
        const rate = ((count - before.count) * 1000) / (record.t - before.t);
        state.rates.set(key, { rate, until: record.t + lasts });
        state.counts.set(key, { count, t: record.t });
      }
    };
    for (const [name, [ready, unacked, count]] of Object.entries(record.queues)) {
      const queue = state.queues.get(queueId(name));
      if (queue) Object.assign(queue, { ready, unacked });
      measure(queueId(name), count);
    }
    recount(state);
    for (const [consumer, count] of record.taken) measure(consumerId(state, consumer), count);
    const arrive = arrivals(state);
    for (const [name, offset] of record.read || []) {
      const consumer = consumerId(state, name);
      later(state, arrive.get(consumer) ?? state.t, { kind: "reads", consumer, offset });
    }
    for (const [stream, name, offset] of record.stored || []) {
      const queue = queueId(stream);
      later(state, arrive.get(queue) ?? state.t, { kind: "stores", queue, stored: { name, offset } });
    }
    for (const [name, credit] of record.credit || []) {
      const consumer = state.consumers.get(consumerId(state, name));
      if (consumer) consumer.credit = credit;
    }
    const published = new Map();
    for (const publisher of state.publishers.values()) {
      if (publisher.isListed) publisher.gone = Math.max(publisher.gone, record.t);
      publisher.isListed = false;
    }
    const list = (client, target, count) => {
      const id = publisherOf(state, client, target);
      state.publishers.get(id).isListed = true;
      const key = `${id} ${target}`;
      published.set(key, (published.get(key) || 0) + count);
    };
    for (const [client, exchange, count] of record.published) list(client, exchangeId(exchange), count);
    for (const [client, stream, count] of record.appended || []) list(client, queueId(stream), count);
    for (const [key, count] of published) measure(key, count);
    // If a publisher connects again, its counts start at 0.
    for (const counted of [state.counts, state.rates]) {
      for (const key of counted.keys()) if (key.startsWith("p:") && !published.has(key)) counted.delete(key);
    }
  },

  published(state, event) {
    const { from, paths, details } = event;
    if (paths.length === 1 && paths[0].length === 1) {
      // With the stream protocol, a message does not pass through an exchange.
      const stream = queueOf(state, paths[0][0]);
      const origin = publisherOf(state, from.client, stream);
      const arrives = acts(state, from, event.t);
      state.publishers.get(origin).gone = arrives;
      state.messages.set(event.message, { details, from, origin, exchange: null, arrives, paths: new Map() });
      return;
    }
    const exchange = exchangeOf(state, details.exchange);
    let arrives;
    let origin = null;
    if (from.client !== undefined) {
      origin = publisherOf(state, from.client, exchange);
      const start = inTurn(state, origin, exchange, acts(state, from, event.t));
      state.publishers.get(origin).gone = start;
      arrives = move(state, `m${event.message}`, [origin, exchange], "ready", start, { details });
    } else if (from.queue !== undefined) {
      origin = queueOf(state, from.queue);
      const dead = state.lastDead && state.lastDead.queue === origin ? state.lastDead.arrives : event.t;
      const fate = from.reason === "expired" ? "expired" : "dead";
      const start = inTurn(state, origin, exchange, Math.max(dead, event.t));
      wait(state, `m${event.message}`, origin, fate, Math.max(dead, event.t), start, { details });
      arrives = move(state, `m${event.message}`, [origin, exchange], fate, start, { details });
    } else {
      arrives = Math.max(event.t, state.copies.get(`${exchange}/${from.copy}`)?.busyUntil ?? 0);
      state.copies.delete(`${exchange}/${from.copy}`);
    }
    const known = new Map(paths.map((path) => [queueId(path[path.length - 1]), path]));
    for (const [queue, path] of known) {
      const arrow = `${exchangeId(path[path.length - 2])} ${queue}`;
      if (!state.seen.has(queue)) state.seen.set(queue, new Map());
      state.seen.get(queue).set(arrow, (state.seen.get(queue).get(arrow) || 0) + 1);
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
    const key = `m${event.message} ${queue}`;
    const arrives = move(state, key, [...path, queue], "ready", message.arrives, { details: message.details });
    state.lately.set(`${queue} ${bodyKey(message.details)}`, { arrives, since: event.t });
    if (state.lately.size > KEPT_MESSAGES) state.lately.delete(state.lately.keys().next().value);
  },

  taken(state, event) {
    const queue = queueOf(state, event.queue);
    const lately = state.lately.get(`${queue} ${bodyKey(event.details)}`);
    const consumer = consumerOf(state, event.consumer, event.queue, undefined, lately?.since);
    const offset = event.details.headers["x-stream-offset"];
    const start = gets(state, consumer, Math.max(event.t, lately?.arrives ?? 0));
    const turn = inTurn(state, queue, consumer, start);
    const arrives = move(state, `${queue} ${event.t}`, [queue, consumer], "unacknowledged", turn, {
      details: event.details,
    });
    if (Number.isInteger(offset)) later(state, arrives, { kind: "reads", consumer, offset });
    reached(state, { client: state.consumers.get(consumer).label, connection: event.connection }, arrives);
  },

  appended(state, event) {
    const message = state.messages.get(event.message);
    const queue = queueOf(state, event.queue);
    if (!message) return;
    enter(state, message, queue, event, "stream");
    const offsets = [...state.copies.values()].filter((each) => each.place === queue);
    for (const each of offsets.slice(0, -KEPT_OFFSETS)) {
      state.copies.delete(each.key);
      state.queues.get(queue).counted = "";
      later(state, each.busyUntil, { kind: "passed", queue });
    }
  },

  read(state, event) {
    const copy = copyOf(state, event);
    const queue = queueOf(state, event.queue);
    const consumer = consumerOf(state, event.consumer, event.queue, event.to, copy?.since);
    const key = `${queue}/${event.copy} ${consumer}`;
    // A client that subscribes again at once may get the same message again, which is shown only once.
    if (state.motions.some((motion) => motion.key === key)) return;
    // Only the latest messages of a stream are known. Older messages arrived before them.
    const [oldest] = copy ? [copy] : [...state.copies.values()].filter(({ place }) => place === queue);
    const start = inTurn(state, queue, consumer, gets(state, consumer, Math.max(event.t, oldest?.busyUntil ?? 0)));
    const message = { details: copy?.details, offset: event.copy };
    const arrives = move(state, key, [queue, consumer], "stream", start, message);
    later(state, arrives, { kind: "reads", consumer, offset: event.copy });
    // The reader may also have received messages that are not drawn. They arrive with the last message that is.
    state.due = state.due.filter(({ record }) => record.consumer !== consumer || !record.isLast);
    later(state, arrives, { kind: "reads", consumer, offset: event.offset ?? event.copy, isLast: true });
    if (event.to) reached(state, event.to, arrives);
  },

  stored(state, { queue: stream, name, offset, from, t }) {
    const queue = queueOf(state, stream);
    const reader = [...state.consumers.values()].find((each) => each.queue === queue && each.label === from.client)?.id;
    let arrives = acts(state, from, t);
    if (reader) {
      const start = inTurn(state, reader, queue, arrives);
      arrives = move(state, `${queue} stored ${state.number}`, [reader, queue], "stored", start, { offset });
    }
    later(state, arrives, { kind: "stores", queue, stored: { name, offset } });
  },

  "unknown-address"(state, { from, address, t }) {
    if (!address.startsWith("/queues/")) {
      publisherOf(state, from.client, null);
      return;
    }
    // A queue gets messages through the default exchange. The client cannot send the message: show it as returned.
    const exchange = exchangeOf(state, "");
    const publisher = publisherOf(state, from.client, exchange);
    const key = `unknown ${state.number}`;
    const unknown = address.slice("/queues/".length);
    const arrives = move(state, key, [publisher, exchange], "ready", acts(state, from, t), { unknown });
    state.publishers.get(publisher).gone = arrives;
    reached(state, from, move(state, key, [exchange, publisher], "returned", arrives, { unknown }));
  },

  delayed(state, event) {
    const message = state.messages.get(event.message);
    if (!message) return;
    const copy = addCopy(state, exchangeOf(state, event.exchange), event, message.details, "delayed", message.arrives);
    copy.until = event.until;
  },

  returned(state, event) {
    const message = state.messages.get(event.message);
    if (!message?.origin) return;
    const nodes = [message.exchange, message.origin];
    const arrives = move(state, `m${event.message}`, nodes, "returned", message.arrives, { details: message.details });
    message.done = arrives;
    if (message.from.client !== undefined) reached(state, message.from, arrives);
  },

  confirmed(state, { messages, count, nack, t }) {
    const known = messages.map((each) => state.messages.get(each)).filter((each) => each?.exchange);
    if (!known.length) return;
    const { exchange, origin, from } = known.at(-1);
    const done = Math.max(t, ...known.map((each) => each.done ?? each.arrives));
    const start = inTurn(state, exchange, origin, done);
    const fate = nack ? "dead" : "confirmed";
    reached(
      state,
      from,
      move(state, `confirm ${state.number}`, [exchange, origin], fate, start, { confirms: count }),
      true,
    );
  },

  dropped(state, event) {
    const message = state.messages.get(event.message);
    if (!message) return;
    const { details } = message;
    const key = `m${event.message}`;
    const passed = passedBy(state, message.exchange, details.routing_key);
    const arrives =
      passed.length > 1 ? move(state, key, passed, "ready", message.arrives, { details }) : message.arrives;
    message.done = arrives;
    move(state, key, passed.slice(-1), "dropped", arrives, { details }, END);
  },

  refused(state, event) {
    const message = state.messages.get(event.message);
    const nodes = message && [message.exchange, queueOf(state, event.queue)];
    if (!message) return;
    const moved = { details: message.details };
    message.done = move(state, `m${event.message}`, nodes, "dropped", message.arrives, moved);
  },

  delivered(state, event) {
    const copy = copyOf(state, event);
    const consumer = consumerOf(state, event.consumer, event.queue, event.to, copy?.since);
    if (!copy) return;
    const fate = event.no_ack ? "acknowledged" : "unacknowledged";
    if (isFarBehind(copy, event) && !event.no_ack) {
      Object.assign(copy, { node: consumer, fate });
      return;
    }
    const start = leaves(state, copy, consumer, event.t);
    const message = { details: copy.details, place: copy.place };
    copy.busyUntil = move(state, copy.key, [copy.place, consumer], fate, start, message);
    if (event.to) reached(state, event.to, copy.busyUntil);
    if (event.no_ack) {
      move(state, copy.key, [consumer], "acknowledged", copy.busyUntil, { details: copy.details }, END);
      state.copies.delete(copy.key);
    } else {
      Object.assign(copy, { node: consumer, fate });
    }
  },

  acknowledged(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    const start = Math.max(event.t, copy.busyUntil);
    const arrives = move(state, copy.key, [copy.node, copy.place], "acknowledged", start, { details: copy.details });
    state.settled.set(copy.node, Math.max(arrives, state.settled.get(copy.node) ?? 0));
    state.copies.delete(copy.key);
  },

  requeued(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    const nodes = [copy.node, copy.place];
    if (isFarBehind(copy, event)) {
      Object.assign(copy, { node: copy.place, fate: "requeued", since: event.t });
      return;
    }
    // If a consumer ends, first show all messages that it has, and then that all of them go back.
    const held = ENDS.has(event.why) ? [...state.copies.values()].filter(({ node }) => node === copy.node) : [];
    const isSeen = Math.max(0, ...held.map(({ busyUntil }) => busyUntil + END));
    const start = leaves(state, copy, copy.place, event.t, isSeen);
    copy.busyUntil = move(state, copy.key, nodes, "requeued", start, { details: copy.details });
    state.settled.set(copy.node, copy.busyUntil);
    Object.assign(copy, { node: copy.place, fate: "requeued", since: event.t });
  },

  "dead-lettered"(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    let arrives = Math.max(event.t, copy.busyUntil);
    if (copy.node !== copy.place) {
      const start = leaves(state, copy, copy.place, event.t);
      arrives = move(state, copy.key, [copy.node, copy.place], "dead", start, { details: copy.details });
      state.settled.set(copy.node, arrives);
    }
    state.lastDead = { queue: copy.place, arrives };
    state.copies.delete(copy.key);
  },

  discarded(state, event) {
    const copy = copyOf(state, event);
    if (!copy) return;
    vanish(state, copy, { expired: "expired", maxlen: "dropped" }[event.reason] || "dead", event.t);
  },

  purged(state, event) {
    const queue = queueOf(state, event.queue);
    for (const copy of state.copies.values()) {
      if (copy.node === queue && copy.fate !== "stream") vanish(state, copy, "dropped", event.t);
    }
    // Counts from before the purge must not be shown after it.
    state.due = state.due.filter(({ record }) => record.kind !== "counted" || record.queue !== queue);
    const { uncopied } = state.queues.get(queue);
    Object.assign(state.queues.get(queue), { uncopied: { ...uncopied, ready: 0 }, counted: "", isPurged: true });
    forgetUnused(state, queue);
  },

  replied(state, event) {
    const { from, to, message, details } = event;
    const server = [...state.consumers.values()].find(({ name }) => name?.startsWith(`${from.connection} (`))?.id;
    const nodes = [server ?? publisherOf(state, from.client, null), publisherOf(state, to.client, null)];
    reached(state, to, move(state, `m${message}`, nodes, "ready", acts(state, from, event.t), { details }, 2 * HOP));
  },
};

const OF_NO_MESSAGE = new Set(["stored", "unknown-address"]);

/** An event in words, for screen readers, with the names that the picture shows; "" if there is nothing to say. */
function toldOf(state, event) {
  const copy = event.copy === undefined || event.what === "published" ? undefined : copyOf(state, event);
  const message = state.messages.get(event.message ?? event.messages?.[0]);
  const details = event.details ?? copy?.details ?? message?.details;
  if (!details && !OF_NO_MESSAGE.has(event.what)) return "";
  const queue =
    event.queue === undefined ? "" : labelOf(state.queues.get(queueId(event.queue)) ?? { name: event.queue });
  const holder = copy && state.consumers.get(copy.node)?.label;
  const consumer =
    event.consumer === undefined
      ? undefined
      : state.consumers.get(consumerId(state, event.consumer, event.queue))?.label;
  const publisher = message?.from.client;
  return spoken(event, { details, queue, holder, consumer: consumer ?? event.to?.client, publisher });
}

/** A key that copies of one message share. Equal messages share it, too, because a delivered copy has no number. */
const bodyKey = (details) =>
  JSON.stringify([details.exchange, details.routing_key, details.body, details.properties.message_id]);

function say(state, event, told) {
  const text = sentence(event);
  state.sentences.push({ n: ++state.number, t: event.t, text, message: event.message, told });
  if (state.sentences.length > KEPT_SENTENCES) state.sentences.shift();
  const copy = event.copy === undefined || event.what === "published" ? null : copyOf(state, event);
  if (copy) copy.history.push(text);
}
