// Computes where the nodes are: publishers, exchanges, queues and consumers, in layers. A node keeps its rank in its
// layer when other nodes come and go. The gaps between the layers have room for the labels of the arrows. In a wide
// picture, the layers are next to each other, from left to right; in a narrow one, they are below each other.

import { isGenerated, joinedKeys, labelOf } from "./model.js";

/**
 * The size of a box (`width`, `height`), the minimum gap between two layers (`along`), the gap between two nodes of a
 * layer (`across`), the margins beside and before the layers, and the maximum number of characters in a line of a
 * label.
 */
export const SIZE = {
  wide: { width: 160, height: 62, along: 96, across: 20, margin: 24, before: 24, longest: 24 },
  narrow: { width: 156, height: 62, along: 36, across: 14, margin: 24, before: 6, longest: 22 },
  /** Three nodes next to each other fit the width of a phone. More nodes have to be scrolled anyway. */
  three: { width: 132, height: 62, along: 36, across: 6, margin: 4, before: 6, longest: 18 },
};
/** The room above the nodes of a wide picture; and below them, for notes, arrows around all nodes, and labels. */
const ABOVE = 14;
const BELOW = 26;
const BELOW_LABELS = 48;
/** The approximate width of a label's character and height of its lines, and the maximum number of lines in a label. */
const CHARACTER = 6.8;
const LINE = 14;
const LINES = 3;
/** The distance between a downward arrow and the text beside it, so that messages do not cover the text. */
const BESIDE_ARROW = 9;
/** The baseline of a label below or above its moving message. Names are in the upper part of boxes, not the lower. */
const BELOW_MESSAGE = 21.5;
const ABOVE_MESSAGE = -11.5;
/** A label that is further away from its message than this does not seem to belong to it. */
const FAR = 36;
/**
 * Boxes are as wide as the longest name needs, but at most WIDEST, and not so wide that the layers need more than ROOM.
 */
const WIDEST = 236;
const NAME = 7;
const ROOM = 1290;
/** The minimum gap before a layer if the arrows that lead to it have labels. */
const LEAST_KEYED = 116;
/** The room before the labels in which arrows to a layer of several nodes turn, so that no arrow crosses a label. */
const TURN = 40;
/** The room for two headers beside a message on its way to a headers exchange. */
const HEADERS = 184;
/** The minimum room to the left of all boxes if arrows lead up there. */
const LEFT = 10;
/** The additional room at the sides for a stored offset, which is beside the arrow below its stream. */
const NOTE = 68;

/**
 * @typedef {object} Place  the middle of a node, and the number of its layer
 * @property {number} x
 * @property {number} y
 * @property {number} [layer]
 */

/** A text, cut to a number of characters. */
export const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The lines of a label, which is broken at spaces, such as those between keys or headers. Long lines are cut. */
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

  /** The rank of a node in its layer. A new node comes after its relative, or at the end if it has none. */
  rank(id, relative) {
    const known = this.order.get(id);
    if (known !== undefined) return known;
    const near = relative === undefined ? undefined : this.order.get(relative);
    this.next += 1;
    // This is more than the relative's rank, and less than that of the next node, which is about a million higher.
    const rank = near === undefined ? this.next * 1e6 : near + this.next;
    this.order.set(id, rank);
    return rank;
  }

  /**
   * @param {any} state
   * @param {boolean} narrow  layers from top to bottom instead of from left to right
   * @param {any[]} arrows  see arrowsOf()
   * @returns {{places: Map<string, Place>, width: number, height: number, size: any, narrow: boolean,
   *   left: number, low: number, gaps: number[], counts: number[]}}  left: the left edge of all nodes, if narrow; low:
   *   their lower edge (if narrow, the right one); gaps: the room after each layer; counts: the nodes in each layer
   */
  of(state, narrow, arrows) {
    // Queues whose messages go to a client above. These arrows lead up on the left, those to exchanges on the right.
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
    // In a play, leave room for labels below arrows that lead around all nodes.
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

  /** The ids of the nodes of each layer, in order. The queues in `first` come before the others. */
  layersOf(state, first) {
    const depths = depthsOf(state);
    // With the stream protocol, messages do not pass through an exchange: put such a publisher next to the streams.
    const isNextToStream = (publisher) => [...publisher.targets.keys()].some((id) => id.startsWith("q:"));
    const publishers = [...state.publishers.values()];
    const layers = [publishers.filter((each) => !isNextToStream(each)).map((each) => each.id)];
    // If there are no exchanges, there is no layer for them.
    const deepest = Math.max(-1, ...depths.values());
    for (let depth = 0; depth <= deepest; depth += 1) {
      layers.push([...state.exchanges.keys()].filter((id) => depths.get(id) === depth));
    }
    layers[layers.length - 1].push(...publishers.filter(isNextToStream).map((each) => each.id));
    layers.push([...state.queues.keys()], [...state.consumers.keys()]);
    for (const id of layers.flat()) this.rank(id, relativeOf(state, id));
    // Consumers are in the same order as their queues.
    const before = (id) =>
      state.consumers.has(id) ? this.order.get(state.drawn(state.consumers.get(id).queue)) || 0 : 0;
    for (const layer of layers) {
      // The default exchange is the last one, because messages that come back, such as dead letters, often pass it.
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

/** Whether an arrow leads from a queue to a client that is drawn above it, such as the arrow of replies to a client. */
const isUpToClient = (from, to) => from.startsWith("q:") && to.startsWith("p:");

/** The sizes of a picture's boxes and gaps, see SIZE. */
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
  // In a play, messages are labelled with their bodies, for which there must be room on every arrow.
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
      // The labels of arrows to the same node are above each other, each with a rate below it.
      used.set(to, (used.get(to) ?? 0) + lines.length * LINE);
      // Above the label of a middle arrow, the arrows beside it must already have spread out.
      const spread = counts[gap + 1] > 1 ? 22 : 0;
      gaps[gap] = Math.max(gaps[gap], used.get(to) + 34 + spread);
    } else {
      const width = Math.max(...lines.map((line) => line.length)) * CHARACTER;
      // A moving message's label is about as wide as the arrow's.
      const turn = counts[gap + 1] > 1 ? TURN : 0;
      gaps[gap] = Math.max(gaps[gap], LEAST_KEYED, Math.ceil(width) + 26 + turn);
    }
  }
  return gaps;
}

/**
 * Where the labels of arrows are: between two layers, so never over a node, and not over each other.
 * @returns {Map<string, {x: number, y: number, lines: string[], width: number, rate: number, beside: number}>}  by
 *   arrow: the middle of the first line's baseline, and how far below and to the right of this point the rate is
 */
export function labelsOf(layout, arrows, curve) {
  const { places, narrow, size } = layout;
  const half = (narrow ? size.height : size.width) / 2;
  const found = [];
  const stacks = new Map();
  for (const { key, from, to, label: text } of arrows) {
    const points = curve(from, to);
    if (!points.length) continue;
    const [start, end] = [places.get(from), places.get(to)];
    const lines = text ? linesOf(text, size.longest) : [];
    const width = Math.max(0, ...lines.map((line) => line.length)) * CHARACTER;
    const height = lines.length * LINE;
    let { x, y } = pointOf(points, 0.5);
    let beside = 0;
    let rate = height + (lines.length ? 1 : 6);
    y += 8 - height / 2;
    if (end.layer > start.layer && narrow) {
      // Above the node, where arrows to other nodes are far away.
      x = end.x;
      y = end.y - half - 16 - height;
      beside = BESIDE_ARROW;
    } else if (end.layer > start.layer) {
      // Before the node: below an arrow that comes from above, and above one that comes from below.
      x = end.x - half - 12 - Math.max(width, 30) / 2;
      const isBelow = end.y > start.y;
      y = end.y + (isBelow ? 16 : -7 - height + LINE);
      // Keep the rate away from the arrow, so that messages on the arrow do not cover it.
      if (!isBelow) rate = end.y + (lines.length ? 19 : -11) - y;
    }
    const label = { key, lines, x, y, width, rate, beside };
    found.push(label);
    if (end.layer > start.layer && lines.length) {
      if (!stacks.has(to)) stacks.set(to, []);
      stacks.get(to).push({ label, along: narrow ? start.x : start.y });
    }
  }
  for (const [to, stack] of stacks) {
    if (stack.length > 1) pile(stack, places.get(to), narrow ? half + 16 : null);
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
 * Put the labels of several arrows to the same node above each other, in the order of the arrows: in a narrow picture,
 * `above` the middle of the node, so that it covers none; else in front of the node.
 */
function pile(stack, node, above) {
  stack.sort((one, other) => one.along - other.along);
  const height = stack.reduce((sum, { label }) => sum + label.lines.length * LINE + 1, 0);
  let y = node.y - (above === null ? height / 2 - LINE + 4 : above + height);
  for (const { label } of stack) {
    label.y = y;
    label.rate = label.lines.length * LINE + 1;
    y += label.lines.length * LINE + 1;
  }
}

/**
 * The possible places for the label of a message that moves along an arrow, the best one first: between the boxes, if
 * the label fits there, and on the opposite side of the arrow from the arrow's own label.
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
    // Beside the arrow, unless the label would reach the next arrow.
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
  // Not above a message that moves back, because the forward arrow is there.
  return start.layer - end.layer === 1 ? sides.slice(0, 1) : sides;
}

/**
 * The possible places for the label of a message that moves up beside all nodes, or within a layer: on the inner side
 * of the arrow, or above or below the message, where the label covers no box.
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
 * @typedef {object} Box  the area that a text covers
 * @property {number} x     its middle
 * @property {number} y     the baseline of its first line
 * @property {number} half  half of its width
 * @property {number} height  from the baseline of its first line to that of its last line
 */

/**
 * What the labels of moving messages must not cover: the labels of arrows, the names in boxes, and the offsets below
 * `streams`.
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

/** Whether two texts overlap. */
export const isOver = (one, other) =>
  Math.abs(one.x - other.x) < one.half + other.half + 2 &&
  one.y - 11 < other.y + other.height + 3 &&
  other.y - 11 < one.y + one.height + 3;

/** How many exchanges come before each exchange; up to 4, because exchanges can be bound in a cycle. */
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

/** The id of a node that a new node of the same layer should be next to, if any. */
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
 * The arrows between the nodes that are drawn: where each leads, its kind and its label. Its `parts` are the arrows
 * between the nodes of the state that it stands for: several if it leads to or from a group.
 * @param {any} view  see view.js
 * @param {any} state
 */
export function arrowsOf(view, state) {
  const arrows = new Map();
  // add() is called for each message in each frame, and most messages take an arrow that is known already.
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
  // The links that the view's merged links stand for. Only the merged links have labels.
  if (view.links !== view.ways) for (const link of view.ways.values()) add(link.from, link.to, "binding");
  for (const exchange of state.exchanges.values()) {
    if (exchange.alternate) add(exchange.id, `x:${exchange.alternate}`, "alternate", "alternate");
  }
  for (const queue of state.queues.values()) {
    // The dead-letter routing key is only in the table, because there is not enough room for it here.
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
 * The curve between two nodes: the four points of a cubic Bézier curve, or the seven points of two consecutive ones.
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
    // Beside the forward arrows; if there are layers in between, below all nodes or, if narrow, left or right of them.
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
  // Within a layer: around the lower side or, if narrow, the right side.
  const [s, e] = [start[across] + side, end[across] + side];
  const low = Math.max(s, e) + layout.size.across * 1.4;
  return [point(start[along], s), point(start[along], low), point(end[along], low), point(end[along], e)];
}

/**
 * A curve that leads up, to the right of all nodes. At a node that is the rightmost one of its layer, the curve begins
 * or ends at the right side. From another node, it first leads along the gap between the layers, because it would
 * otherwise pass behind other nodes.
 */
function aroundRight({ places, size, low }, start, end) {
  const isLast = (place) => [...places.values()].every(({ x, layer }) => layer !== place.layer || x <= place.x);
  const { along, across, width, height } = size;
  const s = { x: start.x + width / 4, y: start.y - height / 2 };
  if (isLast(start) && isLast(end) && start.x + width / 2 < low) {
    // Lead up only to the right of all nodes, because nodes above may reach further to the right.
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
 * A curve that leads up, to the left of all nodes. From a node that has others to its left, it first leads below these,
 * so that it does not cross the arrows from above.
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

/** The point of a curve at roughly this fraction of its length. */
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
