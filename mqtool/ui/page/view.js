// Chooses what to draw of a state. In a play, this is only what belongs to the play. Similar nodes are drawn as one
// group, with their number and the sums of their counters, until the user unfolds the group.

import { isGenerated } from "./model.js";

/** The minimum number of similar nodes to fold; smaller for wait queues, which mqtool declares for its own use. */
const MANY = 5;
const MANY_WAITS = 3;
const WAITS = /\.(wait|delay)\.\d[\d.]*[a-z]*(\.\w+)?$/;
/** An arrow of a group shows up to this many keys. */
const MOST_KEYS = 4;

/**
 * @typedef {object} Group  similar nodes that may be drawn as one
 * @property {string} id
 * @property {string} label       what their names have in common
 * @property {string[]} members   their ids
 */

/** @type {Map<string, string>} the results of commonOf(), by name */
const commons = new Map();

/** What a name has in common with similar names; "" if it contains no number and was not generated. */
function commonOf(name) {
  let found = commons.get(name);
  if (found === undefined) {
    const numberless = name.replace(/\d+/g, "…");
    if (isGenerated(name)) found = "temporary";
    else if (WAITS.test(name)) found = name.replace(WAITS, ".$1.…");
    else found = numberless === name ? "" : numberless;
    if (commons.size > 5000) commons.clear();
    commons.set(name, found);
  }
  return found;
}

/** Chooses what to draw of states, and remembers what the user has unfolded. */
export class View {
  constructor() {
    /** @type {Set<string>} the ids of groups that are shown node by node */
    this.unfolded = new Set();
    /** Whether a play's picture also shows what does not belong to the play. */
    this.isEverything = false;
    /** @type {Group[]} all groups of the latest state, including those that are unfolded */
    this.groups = [];
    /** The number of nodes that do not belong to the play. */
    this.others = 0;
  }

  /** The unfolded groups of the latest state. */
  get open() {
    return this.groups.filter((each) => this.unfolded.has(each.id));
  }

  /** Show a group as one node, or node by node. */
  toggle(id) {
    if (!this.unfolded.delete(id)) this.unfolded.add(id);
  }

  /** Unfold all groups, or fold them again. */
  toggleAll() {
    const isAny = this.open.length > 0;
    for (const { id } of this.groups) if (isAny === this.unfolded.has(id)) this.toggle(id);
  }

  /**
   * What is drawn of a state: its nodes, including groups, and its links; `ways`, the links before those of groups were
   * merged; and `drawn`, which returns the id of the drawn node that stands for a node of the state.
   */
  of(state) {
    const own = ownOf(state);
    const isOwn = (id) => own === null || this.isEverything || own.has(id);
    const kept = (nodes) => (own === null ? nodes : new Map([...nodes].filter(([id]) => isOwn(id))));
    const ways = usedWays(state);
    const shown = {
      exchanges: kept(usedExchanges(state, ways)),
      queues: kept(usedQueues(state)),
      consumers: kept(new Map([...state.consumers].filter(([, { appears }]) => !appears))),
      publishers: kept(state.publishers),
    };
    const kinds = Object.keys(shown);
    this.others = own === null ? 0 : kinds.reduce((sum, kind) => sum + countOf(state[kind], (id) => !own.has(id)), 0);
    /** @type {Map<string, string>} */
    const standsFor = new Map();
    const drawn = (id) => standsFor.get(id) ?? id;
    this.groups = [];
    // In a play, only wait queues are grouped, because the text may mention each of the other nodes.
    const many = state.play ? Infinity : MANY;
    const least = (name) => (WAITS.test(name) ? MANY_WAITS : many);
    this.fold(shown, standsFor, "queues", ({ name, type }) => [commonOf(name), type, least(name)]);
    this.fold(shown, standsFor, "exchanges", ({ name, type }) => [commonOf(name), type, least(name)]);
    this.fold(shown, standsFor, "publishers", ({ name }) => [commonOf(name), "", many]);
    this.fold(shown, standsFor, "consumers", ({ label, queue }) =>
      standsFor.has(queue) ? ["consumers", drawn(queue), 2] : [commonOf(label) || label, queue, many],
    );
    if (state.play) this.join(shown, standsFor);
    const links = standsFor.size || own !== null ? merged(ways, shown, drawn) : ways;
    return { ...shown, links, ways, drawn, messages: state.messages, motions: state.motions, play: state.play };
  }

  /**
   * In a play, a terminal is one box, even if its programs both publish and consume. The box is at the place of the
   * terminal's earliest node; consumers of queues with generated names, such as reply queues, count only if there is no
   * other node. `joined` contains all of the terminal's nodes.
   */
  join(shown, standsFor) {
    const parties = new Map();
    for (const node of [...shown.publishers.values(), ...shown.consumers.values()]) {
      const name = node.label ?? node.name;
      if (!node.members && node.name !== null) parties.set(name, [...(parties.get(name) ?? []), node]);
    }
    for (const joined of parties.values()) {
      if (joined.length < 2) continue;
      const begun = joined.filter(({ queue }) => queue === undefined || !isGenerated(queue));
      const at = begun.reduce((first, each) => (each.since <= first.since ? each : first), begun[0] ?? joined[0]);
      for (const { id, queue } of joined) {
        const kind = queue === undefined ? "publishers" : "consumers";
        shown[kind] = new Map(shown[kind]);
        if (id === at.id) shown[kind].set(id, { ...at, joined });
        else if (shown[kind].delete(id)) standsFor.set(id, at.id);
      }
    }
  }

  /**
   * Replace similar nodes of a kind by groups. `likeness` returns what a node has in common with others: a label,
   * something else that must be equal, and the minimum number of nodes in a group.
   */
  fold(shown, standsFor, kind, likeness) {
    const found = new Map();
    for (const node of shown[kind].values()) {
      const [label, of, least] = likeness(node);
      if (!label) continue;
      const id = `${node.id[0]}:*${label} ${of}`;
      if (!found.has(id)) found.set(id, { id, label, least, members: [] });
      found.get(id).members.push(node);
    }
    const groups = [...found.values()].filter(({ members, least }) => members.length >= least);
    if (!groups.length) return;
    this.groups.push(...groups.map((each) => ({ ...each, members: each.members.map(({ id }) => id) })));
    const folded = groups.filter(({ id }) => !this.unfolded.has(id));
    shown[kind] = new Map(shown[kind]);
    for (const { id, label, members } of folded) {
      for (const member of members) {
        standsFor.set(member.id, id);
        shown[kind].delete(member.id);
      }
      shown[kind].set(
        id,
        groupOf[kind](id, label, members, (other) => standsFor.get(other) ?? other),
      );
    }
  }
}

const countOf = (nodes, condition) => [...nodes.keys()].filter(condition).length;
const sumOf = (members, value) => members.reduce((sum, each) => sum + value(each), 0);
const sameOf = (members, value, otherwise) =>
  members.every((each) => value(each) === value(members[0])) ? value(members[0]) : otherwise;

/** By kind, makes the node of a group: it is like the first member, but has `members`, and sums as counters. */
const groupOf = {
  queues: (id, label, members) => ({
    ...members[0],
    id,
    name: label === "temporary" ? "temporary queues" : label,
    owner: undefined,
    members: members.map((each) => each.id),
    ready: sumOf(members, (each) => each.ready),
    unacked: sumOf(members, (each) => each.unacked),
    uncopied: {
      ready: sumOf(members, (each) => each.uncopied.ready),
      unacked: sumOf(members, (each) => each.uncopied.unacked),
    },
    deadLetterExchange: sameOf(members, (each) => each.deadLetterExchange, null),
  }),
  exchanges: (id, label, members) => ({
    ...members[0],
    id,
    name: label === "temporary" ? "temporary exchanges" : label,
    members: members.map((each) => each.id),
    alternate: sameOf(members, (each) => each.alternate, null),
  }),
  publishers: (id, label, members) => ({
    id,
    name: label === "temporary" ? "publishers" : label,
    members: members.map((each) => each.id),
    targets: new Map(members.flatMap((each) => [...each.targets])),
  }),
  consumers: (id, label, members, drawn) => ({
    ...members[0],
    id,
    queue: drawn(members[0].queue),
    label: sameOf(members, (each) => each.label, label === "temporary" ? "consumers" : label),
    members: members.map((each) => each.id),
    offset: undefined,
    gone: 0,
    prefetch: sameOf(members, (each) => each.prefetch, null),
    credit: sameOf(members, (each) => each.credit, undefined),
  }),
};

/**
 * The queues of a state. In a play, queues with generated names that are not yet used are left out: a client may
 * declare a queue for replies some time before it consumes from the queue.
 */
function usedQueues({ play, queues, links, copies, messages, consumers }) {
  if (!play) return queues;
  const ends = [...links.values()].filter(({ from }) => from !== "x:").map(({ to }) => to);
  const used = new Set(ends);
  for (const { place } of copies.values()) used.add(place);
  for (const { paths } of messages.values()) for (const queue of paths.keys()) used.add(queue);
  for (const { queue } of consumers.values()) used.add(queue);
  const isUsed = ([id, { name, ready, unacked }]) => !isGenerated(name) || used.has(id) || ready + unacked > 0;
  return new Map([...queues].filter(isUsed));
}

/**
 * The links of a state, without unused links of the default exchange. It is bound to streams, too, but with the stream
 * protocol, messages do not pass through it. In a play with other exchanges, queues are about to be bound to these.
 */
function usedWays({ links, queues, exchanges, publishers, seen, play }) {
  const has = (target) => [...publishers.values()].some(({ targets }) => targets.has(target));
  const isPublishedTo = has("x:");
  const hasOther = [...exchanges.keys()].some((id) => id !== "x:");
  const isToBeBound = play && hasOther && !isPublishedTo && !hasDeadLetters({ queues });
  const isUnused = ([key, { from, to }]) =>
    from === "x:" &&
    !seen.get(to)?.has(key) &&
    (isToBeBound || (queues.get(to)?.type === "stream" && (has(to) || !isPublishedTo)));
  const unused = new Set([...links].filter(isUnused).map(([key]) => key));
  return unused.size ? new Map([...links].filter(([key]) => !unused.has(key))) : links;
}

/** Whether any queue's dead letters go to the default exchange. */
const hasDeadLetters = ({ queues }) => [...queues.values()].some(({ deadLetterExchange }) => deadLetterExchange === "");

/** The exchanges of a state; without the default exchange if usedWays() left out all its links and nothing uses it. */
function usedExchanges({ exchanges, links, queues, publishers }, ways) {
  const isUsed =
    ways === links ||
    [...ways.values()].some(({ from }) => from === "x:") ||
    [...publishers.values()].some(({ targets }) => targets.has("x:")) ||
    hasDeadLetters({ queues });
  return isUsed ? exchanges : new Map([...exchanges].filter(([id]) => id !== "x:"));
}

/** The links between the nodes that are drawn. The links of a group's members are merged into one. */
function merged(links, shown, drawn) {
  const isThere = (id) => shown.exchanges.has(id) || shown.queues.has(id);
  const found = new Map();
  for (const link of links.values()) {
    const [from, to] = [drawn(link.from), drawn(link.to)];
    if (!isThere(from) || !isThere(to)) continue;
    const key = `${from} ${to}`;
    const known = found.get(key);
    if (known === undefined) {
      found.set(key, { ...link, from, to });
      continue;
    }
    const keys = [...new Set([...known.keys, ...link.keys])];
    const more = known.more + link.more + Math.max(0, keys.length - MOST_KEYS);
    found.set(key, { ...known, keys: keys.slice(0, MOST_KEYS), more });
  }
  return found;
}

/** The ids of the nodes that belong to a play, if its broker also has others; otherwise null. */
function ownOf(state) {
  const scope = state.play?.own;
  if (!scope) return null;
  const own = new Set([...scope.exchanges.map((name) => `x:${name}`), ...scope.queues.map((name) => `q:${name}`)]);
  for (const { from, to } of state.links.values()) if (from !== "x:" && own.has(from)) own.add(to);
  // The default exchange routes to every queue.
  if ([...state.queues.keys()].some((id) => own.has(id))) own.add("x:");
  const names = new Set(state.play.terminals.map((each) => each.name));
  for (const { id, name, targets } of state.publishers.values()) {
    if (names.has(name) || [...targets.keys()].some((target) => target !== "x:" && own.has(target))) own.add(id);
  }
  for (const { id, queue } of state.consumers.values()) if (own.has(queue)) own.add(id);
  return own;
}
