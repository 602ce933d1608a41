// Where the nodes are: publishers, exchanges, queues and consumers in layers. A node keeps its place among its layer
// when others come and go. Between two layers there is room for the labels of the arrows.

import { isGenerated, joinedKeys, labelOf } from "./model.js";

export const SIZE = {
  wide: { width: 160, height: 62, along: 96, across: 20, margin: 24, before: 24, longest: 24 },
  narrow: { width: 156, height: 62, along: 36, across: 14, margin: 24, before: 6, longest: 22 },
  /** Three beside each other, as wide as a telephone. More have to be scrolled anyway. */
  three: { width: 132, height: 62, along: 36, across: 6, margin: 4, before: 6, longest: 18 },
};
/** Above the nodes, if the layers are beside each other, and below them, where there are arrows around all, or notes. */
const ABOVE = 14;
const BELOW = 26;
const BELOW_LABELS = 48;
/** The width of a character and the height of a line of a label, roughly; and the most lines in a label. */
const CHARACTER = 6.8;
const LINE = 14;
const LINES = 3;
/** How far beside an arrow that leads down its rate begins, so that messages do not cover it. */
const BESIDE_ARROW = 9;
/** The base of a label, from its moving message. Below, boxes are empty; above are their names. */
const BELOW_MESSAGE = 21.5;
const ABOVE_MESSAGE = -11.5;
/** A label further away than this does not seem to belong to its message. */
const FAR = 36;
/** Boxes are as wide as the longest name needs, if that is not wider than this, and layers beside each other have room. */
const WIDEST = 236;
const NAME = 7;
const ROOM = 1290;
/** The least room between layers if there are labels. */
const LEAST_KEYED = 116;
/** The room in which arrows to several nodes of a layer turn, before the labels, so that none crosses another one's. */
const TURN = 40;
/** The room for two headers beside a message on its way to its exchange. */
const HEADERS = 184;
/** How much room there is for arrows to the left of all boxes. */
const LEFT = 10;
/** How much room there is at the sides for an offset that stands beside the arrow below its stream. */
const NOTE = 68;

/**
 * @typedef {object} Place  the middle of a node, and the number of its layer
 * @property {number} x
 * @property {number} y
 * @property {number} [layer]
 */

/** A text, cut to a number of characters. */
export const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The lines of a label, which is broken after a comma, or between the headers of a binding. Longer ones are cut. */
export function linesOf(label, longest) {
  /** @type {string[]} */
  const lines = [];
  for (const word of label.split(" ")) {
    const last = lines.length ? `${lines[lines.length - 1]} ${word}` : "";
    if (last && last.length <= longest) lines[lines.length - 1] = last;
    else lines.push(cut(word, longest));
  }
  return lines.length > LINES ? [...lines.slice(0, LINES - 1), cut(`${lines[LINES - 1]} …`, longest)] : lines;
}

/** Lays out states. Remembers the order of nodes from one state to the next. */
export class Layout {
  constructor() {
    /** @type {Map<string, number>} */
    this.order = new Map();
    this.next = 0;
  }

  /** The rank of a node in its layer: a new node comes after its relatives, or at the end. */
  rank(id, relative) {
    const known = this.order.get(id);
    if (known !== undefined) return known;
    const near = relative === undefined ? undefined : this.order.get(relative);
    this.next += 1;
    // Between its relative and whoever comes next: numbers by time of arrival break ties.
    const rank = near === undefined ? this.next * 1e6 : near + this.next;
    this.order.set(id, rank);
    return rank;
  }

  /**
   * @param {any} state
   * @param {boolean} narrow  layers from top to bottom instead of from left to right
   * @param {any[]} arrows  see arrowsOf()
   * @returns {{places: Map<string, Place>, width: number, height: number, size: any, narrow: boolean,
   *   left: number, low: number, gaps: number[], counts: number[]}}  left: the left side of all nodes, if narrow; low:
   *   the lower side (if narrow, the right one); gaps: the room after each layer; counts: of the nodes in each layer
   */
  of(state, narrow, arrows) {
    // A client above gets the messages of these. Their arrows lead up on the left, those to exchanges on the right.
    const above = narrow ? arrows.filter(({ from, to }) => isUpToClient(from, to)).map(({ from }) => from) : [];
    const replies = above.filter((id) => isGenerated(state.queues.get(id)?.name ?? ""));
    const layers = this.layersOf(state, new Set(replies));
    const most = Math.max(1, ...layers.map((layer) => layer.length));
    const size = sizeOf(state, narrow, most, layers.length);
    const cross = (narrow ? size.width : size.height) + size.across;
    const left = Math.max(size.margin, above.length ? LEFT : 0);
    const places = new Map();
    layers.forEach((layer, index) => {
      const first = ((most - layer.length) * cross) / 2;
      layer.forEach((id, row) => {
        const across = (narrow ? left : ABOVE) + first + row * cross + (narrow ? size.width : size.height) / 2;
        places.set(id, narrow ? { x: across, y: 0, layer: index } : { x: 0, y: across, layer: index });
      });
    });
    const counts = layers.map((layer) => layer.length);
    const gaps = gapsOf(state, counts, places, size, narrow, arrows);
    let along = size.before + (narrow ? size.height : size.width) / 2;
    layers.forEach((layer, index) => {
      for (const id of layer) places.get(id)[narrow ? "y" : "x"] = along;
      along += (narrow ? size.height : size.width) + gaps[index];
    });
    const length = along - gaps[gaps.length - 1] - (narrow ? size.height : size.width) / 2 + size.before;
    const low = (narrow ? left : ABOVE) + most * cross - size.across;
    // In a play, there is room for labels below the arrows that lead around all.
    const layerOf = (id) => places.get(id)?.layer;
    const isAround = state.play && arrows.some(({ from, to }) => layerOf(from) - layerOf(to) > 1);
    const breadth = low + (narrow ? size.margin + size.across : isAround ? BELOW_LABELS : BELOW);
    return {
      places,
      narrow,
      size,
      left,
      low,
      gaps,
      counts,
      width: narrow ? breadth : length,
      height: narrow ? length + BELOW : breadth,
    };
  }

  /** The ids of the nodes of each layer, in their order; `first` are the queues that come before the others. */
  layersOf(state, first) {
    const depths = depthsOf(state);
    // With the stream protocol, messages pass no exchange: such a publisher is in the layer next to the streams.
    const isNextToStream = (publisher) => [...publisher.targets.keys()].some((id) => id.startsWith("q:"));
    const publishers = [...state.publishers.values()];
    const layers = [publishers.filter((each) => !isNextToStream(each)).map((each) => each.id)];
    // Without exchanges, there is no layer for them.
    const deepest = Math.max(-1, ...depths.values());
    for (let depth = 0; depth <= deepest; depth += 1) {
      layers.push([...state.exchanges.keys()].filter((id) => depths.get(id) === depth));
    }
    layers[layers.length - 1].push(...publishers.filter(isNextToStream).map((each) => each.id));
    layers.push([...state.queues.keys()], [...state.consumers.keys()]);
    for (const id of layers.flat()) this.rank(id, relativeOf(state, id));
    // Consumers are beside their queues.
    const before = (id) =>
      state.consumers.has(id) ? this.order.get(state.drawn(state.consumers.get(id).queue)) || 0 : 0;
    for (const layer of layers) {
      // The default exchange is below the others: what comes back from below, such as dead letters, passes it.
      layer.sort(
        (one, other) =>
          Number(first.has(other)) - Number(first.has(one)) ||
          before(one) - before(other) ||
          Number(one === "x:") - Number(other === "x:") ||
          this.order.get(one) - this.order.get(other),
      );
    }
    return layers;
  }
}

/** Whether an arrow leads from a queue to a client that is drawn above it, such as that of the replies to a client. */
const isUpToClient = (from, to) => from.startsWith("q:") && to.startsWith("p:");

/** The sizes of a picture: of all its boxes, and between them. */
function sizeOf(state, narrow, most, count) {
  const size = !narrow ? SIZE.wide : most === 3 ? SIZE.three : SIZE.narrow;
  const isStored = [...state.queues.values()].some(({ stored }) => stored);
  const margin = size.margin + (narrow && isStored && most < 3 ? NOTE : 0);
  const names = [...[...state.queues.values()].map(labelOf), ...[...state.exchanges.values()].map(({ name }) => name)];
  const needed = Math.max(...names.map((name) => name.length * NAME + 28), 0);
  const widest = !narrow ? (ROOM - (size.along + 34) * (count - 1)) / count : most === 1 ? WIDEST : 0;
  const width = Math.max(size.width, Math.min(needed, WIDEST, Math.floor(widest)));
  return { ...size, margin, width };
}

/** The room after each layer: enough for the labels of the arrows that end at the next one. */
function gapsOf(state, counts, places, size, narrow, arrows) {
  // In a play, the bodies of messages are beside them.
  const gaps = Array(counts.length).fill(state.play && !narrow ? Math.max(size.along, LEAST_KEYED) : size.along);
  for (const { id, type } of state.play && !narrow ? state.exchanges.values() : []) {
    const { layer } = places.get(id);
    if (type === "headers" && layer) gaps[layer - 1] = Math.max(gaps[layer - 1], HEADERS);
  }
  const used = new Map();
  for (const { from, to, label } of arrows) {
    const [start, end] = [places.get(from)?.layer, places.get(to)?.layer];
    if (!label || start === undefined || end === undefined || start === end) continue;
    const gap = Math.max(start, end) - 1;
    const lines = linesOf(label, size.longest);
    if (narrow) {
      // Labels of arrows to the same node are above each other, with a rate below each.
      used.set(to, (used.get(to) ?? 0) + lines.length * LINE);
      // The arrows beside the middle one must have spread out above its label.
      const spread = counts[gap + 1] > 1 ? 22 : 0;
      gaps[gap] = Math.max(gaps[gap], used.get(to) + 34 + spread);
    } else {
      const width = Math.max(...lines.map((line) => line.length)) * CHARACTER;
      // The label of a message on its way is about as long.
      const turn = counts[gap + 1] > 1 ? TURN : 0;
      gaps[gap] = Math.max(gaps[gap], LEAST_KEYED, Math.ceil(width) + 26 + turn);
    }
  }
  return gaps;
}

/**
 * Where the labels of arrows are: between two layers, so never over a node, and not over each other.
 * @returns {Map<string, {x: number, y: number, lines: string[], width: number, rate: number, beside: number}>}  by arrow; the middle of
 *   the first line's base, and how far below it the base of the rate is, and beside it
 */
export function labelsOf(layout, arrows, curve) {
  const { places, narrow, size } = layout;
  const half = (narrow ? size.height : size.width) / 2;
  const found = [];
  for (const { key, from, to, label } of arrows) {
    const points = curve(from, to);
    if (!points.length) continue;
    const [start, end] = [places.get(from), places.get(to)];
    const lines = label ? linesOf(label, size.longest) : [];
    const width = Math.max(0, ...lines.map((line) => line.length)) * CHARACTER;
    const height = lines.length * LINE;
    let { x, y } = pointOf(points, 0.5);
    let beside = 0;
    let rate = height + (lines.length ? 1 : 6);
    y += 8 - height / 2;
    if (end.layer > start.layer && narrow) {
      // Above the node, where arrows to others are far.
      x = end.x;
      y = end.y - half - 16 - height;
      beside = BESIDE_ARROW;
    } else if (end.layer > start.layer) {
      // Beside the node, on the side of the arrow that the arrow does not come from.
      x = end.x - half - 12 - Math.max(width, 30) / 2;
      const isBelow = end.y > start.y;
      y = end.y + (isBelow ? 16 : -7 - height + LINE);
      // Messages that move along the arrow do not cover the rate.
      if (!isBelow) rate = end.y + (lines.length ? 19 : -11) - y;
    }
    found.push({ key, lines, x, y, width, rate, beside });
  }
  found.sort((one, other) => one.y - other.y);
  const labels = new Map();
  const before = [];
  for (const each of found) {
    if (each.lines.length) {
      for (const other of before) {
        const isBeside = Math.abs(other.x - each.x) >= (other.width + each.width) / 2;
        if (!isBeside) each.y = Math.max(each.y, other.y + other.lines.length * LINE + 1);
      }
      before.push(each);
    }
    labels.set(each.key, each);
  }
  return labels;
}

/**
 * Where the label of a message may be that moves along an arrow: between the boxes, if it fits there. The best place is
 * first; it is on the other side of the arrow than the arrow's own label.
 * @param {{x: number, y: number, from?: string, to?: string}} at  where the message is, and on which arrow
 * @param {number} half  half of the label's width
 * @returns {Box[]}
 */
export function besideMessage(layout, labels, at, half) {
  const { places, narrow, size, width, height } = layout;
  const [start, end] = [places.get(at.from), places.get(at.to)];
  const own = labels.get(`${at.from} ${at.to}`);
  const isForward = end.layer > start.layer;
  const isKeyed = own !== undefined && own.lines.length > 0;
  const box = (x, y) => ({ x: within(x, half, width - half), y, half, height: 0 });
  if (narrow && (isForward || start.layer - end.layer === 1)) {
    const [upper, lower] = isForward ? [start, end] : [end, start];
    const top = isForward && isKeyed ? own.y + (own.lines.length - 1) * LINE : upper.y + size.height / 2;
    const y = within(at.y, top + 13, lower.y - size.height / 2 - 4);
    // What is beside an arrow does not reach the next one.
    const x = at.x + BESIDE_ARROW + half;
    const next = [...places.values()].filter((each) => each.layer === lower.layer && each.x > lower.x + 1);
    return [box(x + half < Math.min(width, ...next.map((each) => each.x)) ? x : at.x, y)];
  }
  if (narrow) return besideArrowAround(layout, at, half);
  const isAway = isKeyed && isForward && end.y > start.y;
  const isAbove = isAway || at.y + BELOW_MESSAGE + 4 > height;
  const isBack = start.layer > end.layer;
  const [first, last] = isBack ? [end, start] : [start, end];
  const [left, right] = [first.x + size.width / 2 + half + 4, last.x - size.width / 2 - half - 4];
  const x = (isForward || isBack) && left <= right ? within(at.x, left, right) : at.x;
  const sides = [box(x, at.y + BELOW_MESSAGE), box(x, at.y + ABOVE_MESSAGE)];
  if (isAbove) return sides.reverse();
  // Above what moves back is the arrow that leads forward.
  return start.layer - end.layer === 1 ? sides.slice(0, 1) : sides;
}

/**
 * Where the label of a message may be that moves up beside all nodes, or within a layer: where it covers no box; on the
 * inner side of the arrow, or above or below the message.
 */
function besideArrowAround({ places, size, width }, at, half) {
  const isLeft = at.x < width / 2;
  const inner = at.x + (isLeft ? 1 : -1) * (BESIDE_ARROW + half);
  const rows = [...new Set([...places.values()].map(({ y }) => y))].sort((one, other) => one - other);
  const between = rows.slice(1).map((y, index) => ({ x: inner, y: (y + rows[index]) / 2 + 4 }));
  const near = between.filter(({ y }) => Math.abs(y - at.y) < FAR);
  const all = [
    { x: inner, y: at.y + 4 },
    { x: at.x, y: at.y + ABOVE_MESSAGE },
    { x: at.x, y: at.y + BELOW_MESSAGE },
  ];
  const boxes = [...places.values()].map(({ x, y }) => ({
    x,
    y: y - size.height / 2 + 11,
    half: size.width / 2,
    height: size.height - 14,
  }));
  return [...all, ...near]
    .map(({ x, y }) => ({ x: within(x, half, width - half), y, half, height: 0 }))
    .filter((place) => !boxes.some((each) => isOver(each, place)));
}

const within = (value, low, high) => Math.max(low, Math.min(high, value));

/**
 * @typedef {object} Box  what a text covers
 * @property {number} x     its middle
 * @property {number} y     the base of its first line
 * @property {number} half  half of its width
 * @property {number} height  from its first to its last line
 */

/**
 * What the labels of moving messages must not cover: the labels of arrows, the names in boxes, and the offsets below these
 * streams.
 */
export function takenBy({ places, size, narrow }, labels, streams) {
  const words = [...labels.values()].filter(({ lines }) => lines.length);
  const half = size.width / 2;
  const below = narrow ? [] : streams.map((id) => places.get(id));
  return [
    ...words.map(({ x, y, lines, width }) => ({ x, y, half: width / 2, height: (lines.length - 1) * LINE })),
    ...[...places.values()].map(({ x, y }) => ({ x, y: y - size.height / 2 + 19, half, height: 15 })),
    ...below.map(({ x, y }) => ({ x, y: y + size.height / 2 + 14, half, height: 0 })),
  ];
}

/** Whether one text covers a part of another one. */
export const isOver = (one, other) =>
  Math.abs(one.x - other.x) < one.half + other.half + 2 &&
  one.y - 11 < other.y + other.height + 3 &&
  other.y - 11 < one.y + one.height + 3;

/** How many exchanges come before each exchange. Circles end where they began. */
function depthsOf(state) {
  const depths = new Map([...state.exchanges.keys()].map((id) => [id, 0]));
  const arrows = [...state.links.values()]
    .filter((link) => link.to.startsWith("x:"))
    .map((link) => [link.from, link.to]);
  for (const exchange of state.exchanges.values()) {
    if (exchange.alternate) arrows.push([exchange.id, `x:${exchange.alternate}`]);
  }
  for (let round = 0; round < Math.min(depths.size, 4); round += 1) {
    for (const [from, to] of arrows) {
      if (depths.has(from) && depths.has(to) && from !== to) {
        depths.set(to, Math.min(4, Math.max(depths.get(to), depths.get(from) + 1)));
      }
    }
  }
  return depths;
}

/** A node of the same layer that a new node should be next to. */
function relativeOf(state, id) {
  if (id.startsWith("q:")) {
    const sources = [...state.links.values()].filter((link) => link.to === id).map((link) => link.from);
    for (const link of state.links.values()) if (link.to !== id && sources.includes(link.from)) return link.to;
  }
  if (id.startsWith("c:")) {
    const queue = state.consumers.get(id).queue;
    for (const other of state.consumers.values()) if (other.id !== id && other.queue === queue) return other.id;
  }
  return undefined;
}

/**
 * The arrows between the nodes that are drawn: what leads from where to where, and how it is drawn. `parts` are the ways
 * of the state that an arrow stands for.
 * @param {any} view  see view.js
 * @param {any} state
 */
export function arrowsOf(view, state) {
  const arrows = new Map();
  // This is called for each message in each frame: most of them take a way that is known already.
  const known = new Set();
  const add = (from, to, kind, label = "") => {
    const part = `${from} ${to}`;
    if (known.has(part)) return;
    known.add(part);
    const [start, end] = [view.drawn(from), view.drawn(to)];
    if (!isDrawn(view, start) || !isDrawn(view, end)) return;
    const key = `${start} ${end}`;
    if (!arrows.has(key)) arrows.set(key, { key, from: start, to: end, kind, label, parts: [] });
    arrows.get(key).parts.push({ key: part, from, to, kind });
  };
  for (const link of view.links.values()) {
    const more = link.more ? ` and ${link.more.toLocaleString("en")} more` : "";
    add(link.from, link.to, "binding", joinedKeys(link.keys.filter((key) => key !== "")) + more);
  }
  // What these stand for; the labels are those of the view.
  if (view.links !== view.ways) for (const link of view.ways.values()) add(link.from, link.to, "binding");
  for (const exchange of state.exchanges.values()) {
    if (exchange.alternate) add(exchange.id, `x:${exchange.alternate}`, "alternate", "alternate");
  }
  for (const queue of state.queues.values()) {
    // Its key is in the table: there is not enough room for it here.
    if (queue.deadLetterExchange !== null) add(queue.id, `x:${queue.deadLetterExchange}`, "dead", "dead letters");
  }
  for (const publisher of state.publishers.values()) {
    for (const target of publisher.targets.keys()) add(publisher.id, target, "publishes");
  }
  for (const consumer of state.consumers.values()) add(consumer.queue, consumer.id, "consumes");
  for (const message of state.messages.values()) {
    for (const [queue, path] of message.paths) {
      const from = `x:${path[path.length - 2]}`;
      if (state.exchanges.has(from) && state.queues.has(queue)) add(from, queue, "routed");
    }
  }
  return [...arrows.values()];
}

function isDrawn(view, id) {
  return view.exchanges.has(id) || view.queues.has(id) || view.consumers.has(id) || view.publishers.has(id);
}

/**
 * A curve between two nodes, as the four points of a cubic Bézier curve, or the seven of two that follow each other.
 * @returns {Place[]}
 */
export function curveBetween(layout, from, to) {
  const start = layout.places.get(from);
  const end = layout.places.get(to);
  if (!start || !end || from === to) return [];
  const { width, height } = layout.size;
  const along = layout.narrow ? "y" : "x";
  const across = layout.narrow ? "x" : "y";
  const half = (layout.narrow ? height : width) / 2;
  const side = (layout.narrow ? width : height) / 2;
  const point = (a, b) => (layout.narrow ? { x: b, y: a } : { x: a, y: b });
  if (end[along] - start[along] > half) {
    const [s, e] = [start[along] + half, end[along] - half];
    const isEarly = layout.counts[end.layer] > 1;
    const bend = (end[along] - start[along]) / 4;
    return [
      point(s, start[across]),
      point(isEarly ? s : s + bend, start[across]),
      point(isEarly ? s + (e - s) / 10 : e - bend, end[across]),
      point(e, end[across]),
    ];
  }
  const back = start[along] - end[along];
  if (back > half) {
    // Beside the arrows that lead forward; if there are nodes between, around the lower side of all.
    const shift = side / 2;
    const isNear = start.layer - end.layer === 1;
    if (!isNear && layout.narrow) return (isUpToClient(from, to) ? aroundLeft : aroundRight)(layout, start, end);
    const [s, e] = [start[along] - half, end[along] + half - (to.startsWith("x:") && !layout.narrow ? 6 : 0)];
    const [first, last] = [start[across] + shift, end[across] + shift];
    const bend = isNear ? (s - e) / 2 : layout.size.along;
    const low = (layout.low + layout.size.across - (first + last) / 8) / 0.75;
    const [b, c] = isNear ? [first, last] : [low, low];
    return [point(s, first), point(s - bend, b), point(e + bend, c), point(e, last)];
  }
  // Within a layer: around the lower side.
  const [s, e] = [start[across] + side, end[across] + side];
  const low = Math.max(s, e) + layout.size.across * 1.4;
  return [point(start[along], s), point(start[along], low), point(end[along], low), point(end[along], e)];
}

/**
 * A curve that leads up, to the right of all nodes. At a node that has none to its right, it begins or ends at the right
 * side; from another one, it leads along the gap between the layers first: otherwise, it would pass behind the nodes above.
 */
function aroundRight({ places, size, low }, start, end) {
  const isLast = (place) => [...places.values()].every(({ x, layer }) => layer !== place.layer || x <= place.x);
  const { along, across, width, height } = size;
  const s = { x: start.x + width / 4, y: start.y - height / 2 };
  if (isLast(start) && isLast(end) && start.x + width / 2 < low) {
    // Up only beside all nodes: those above may reach further to the right.
    const [outer, below] = [low + across, s.y - along / 2];
    const [from, to] = [start, end].map(({ x, y }) => ({ x: x + width / 2, y }));
    const corner = { x: outer, y: to.y };
    return [
      from,
      { x: (from.x + outer) / 2, y: from.y },
      { x: outer, y: from.y },
      { x: outer, y: below },
      corner,
      corner,
      to,
    ];
  }
  const first = isLast(start) ? { x: start.x + width / 2, y: start.y } : { x: low, y: s.y - along / 2 };
  const [d, y] = isLast(end)
    ? [{ x: end.x + width / 2, y: end.y }, end.y]
    : [{ x: end.x + width / 4, y: end.y + height / 2 }, end.y + height / 2 + along];
  const x = (low + across - Math.max(first.x, d.x) / 4) / 0.75;
  const curve = [first, { x, y: first.y }, { x, y }, d];
  return isLast(start) ? curve : [s, { x: s.x, y: first.y }, { x: (s.x + low) / 2, y: first.y }, ...curve];
}

/**
 * A curve that leads up, to the left of all nodes. From a node that has others to its left, it leads below them first, so
 * that it crosses none of the arrows from above.
 */
function aroundLeft({ places, size, left }, start, end) {
  const isFirst = (place) => [...places.values()].every(({ x, layer }) => layer !== place.layer || x >= place.x);
  const { along, across, width, height } = size;
  const d = isFirst(end) ? { x: end.x - width / 2, y: end.y } : { x: end.x - width / 4, y: end.y + height / 2 };
  const y = d.y + (isFirst(end) ? 0 : along);
  if (isFirst(start)) {
    const first = { x: start.x - width / 2, y: start.y };
    const x = first.x - 2 * across;
    return [first, { x, y: first.y }, { x, y }, d];
  }
  const s = { x: start.x - width / 4, y: start.y + height / 2 };
  const first = { x: left, y: s.y + along / 2 };
  const x = left - 2.5 * across;
  return [s, { x: s.x, y: first.y }, { x: (s.x + left) / 2, y: first.y }, first, { x, y: first.y }, { x, y }, d];
}

/** The point of a curve at a fraction of its length, roughly. */
export function pointOf(points, fraction) {
  if (points.length > 4) {
    return fraction < 0.5 ? pointOf(points.slice(0, 4), 2 * fraction) : pointOf(points.slice(3), 2 * fraction - 1);
  }
  const [a, b, c, d] = points;
  const left = 1 - fraction;
  const mix = (axis) =>
    left ** 3 * a[axis] +
    3 * left ** 2 * fraction * b[axis] +
    3 * left * fraction ** 2 * c[axis] +
    fraction ** 3 * d[axis];
  return { x: mix("x"), y: mix("y") };
}
