// Where the nodes are: publishers, exchanges, queues and consumers in layers. A node keeps its place among its layer
// when others come and go.

export const SIZE = {
  wide: { width: 154, height: 62, along: 96, across: 26 },
  narrow: { width: 128, height: 62, along: 44, across: 14 },
};
const MARGIN = 24;

/**
 * @typedef {object} Place  the middle of a node
 * @property {number} x
 * @property {number} y
 */

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
   * @returns {{places: Map<string, Place>, width: number, height: number, size: any, narrow: boolean,
   *   low: number}}  low: the lower side of all nodes (if narrow, the right one)
   */
  of(state, narrow) {
    const size = narrow ? SIZE.narrow : SIZE.wide;
    const depths = depthsOf(state);
    // With the stream protocol, messages pass no exchange: such a publisher is in the layer next to the streams.
    const isNextToStream = (publisher) => [...publisher.targets.keys()].some((id) => id.startsWith("q:"));
    const publishers = [...state.publishers.values()];
    const layers = [publishers.filter((each) => !isNextToStream(each)).map((each) => each.id)];
    const deepest = Math.max(0, ...depths.values());
    for (let depth = 0; depth <= deepest; depth += 1) {
      layers.push([...state.exchanges.keys()].filter((id) => depths.get(id) === depth));
    }
    layers[layers.length - 1].push(...publishers.filter(isNextToStream).map((each) => each.id));
    layers.push([...state.queues.keys()], [...state.consumers.keys()]);
    for (const id of layers.flat()) this.rank(id, relativeOf(state, id));
    // Consumers are beside their queues.
    const before = (id) => (state.consumers.has(id) ? this.order.get(state.consumers.get(id).queue) || 0 : 0);
    for (const layer of layers) {
      layer.sort((one, other) => before(one) - before(other) || this.order.get(one) - this.order.get(other));
    }

    const cross = (narrow ? size.width : size.height) + size.across;
    const main = (narrow ? size.height : size.width) + size.along;
    const most = Math.max(1, ...layers.map((layer) => layer.length));
    const places = new Map();
    layers.forEach((layer, index) => {
      const first = ((most - layer.length) * cross) / 2;
      layer.forEach((id, row) => {
        const along = MARGIN + index * main + (narrow ? size.height : size.width) / 2;
        const across = MARGIN + first + row * cross + (narrow ? size.width : size.height) / 2;
        places.set(id, narrow ? { x: across, y: along } : { x: along, y: across });
      });
    });
    const length = 2 * MARGIN + layers.length * main - size.along;
    const breadth = 2 * MARGIN + most * cross;
    const low = breadth - MARGIN - size.across;
    return { places, narrow, size, low, width: narrow ? breadth : length, height: narrow ? length : breadth };
  }
}

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

/** The arrows of a state: what leads from where to where, and how it is drawn. */
export function arrowsOf(state) {
  const arrows = new Map();
  const add = (from, to, kind, label = "") => {
    const key = `${from} ${to}`;
    if (!arrows.has(key)) arrows.set(key, { key, from, to, kind, label });
  };
  for (const link of state.links.values()) {
    const more = link.more ? ` and ${link.more.toLocaleString("en")} more` : "";
    add(link.from, link.to, "binding", link.keys.filter((key) => key !== "").join(", ") + more);
  }
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
  return [...arrows.values()].filter((arrow) => known(state, arrow.from) && known(state, arrow.to));
}

function known(state, id) {
  return state.exchanges.has(id) || state.queues.has(id) || state.consumers.has(id) || state.publishers.has(id);
}

/**
 * A curve between two nodes, as the four points of a cubic Bézier curve.
 * @returns {Place[]}
 */
export function curveBetween(layout, from, to) {
  const start = layout.places.get(from);
  const end = layout.places.get(to);
  if (!start || !end) return [];
  const { width, height } = layout.size;
  const along = layout.narrow ? "y" : "x";
  const across = layout.narrow ? "x" : "y";
  const half = (layout.narrow ? height : width) / 2;
  const side = (layout.narrow ? width : height) / 2;
  const point = (a, b) => (layout.narrow ? { x: b, y: a } : { x: a, y: b });
  if (end[along] - start[along] > half) {
    const bend = (end[along] - start[along]) / 2;
    const [s, e] = [start[along] + half, end[along] - half];
    return [
      point(s, start[across]),
      point(s + bend / 2, start[across]),
      point(e - bend / 2, end[across]),
      point(e, end[across]),
    ];
  }
  const back = start[along] - end[along];
  if (back > half) {
    // Beside the arrows that lead forward; if there are nodes between, around the lower side of all.
    const shift = side / 2;
    const [s, e] = [start[along] - half, end[along] + half - (to.startsWith("x:") && !layout.narrow ? 6 : 0)];
    const [first, last] = [start[across] + shift, end[across] + shift];
    const isNear = back < 1.5 * (2 * half + layout.size.along);
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

/** The point of a curve at a fraction of its length, roughly. */
export function pointOf([a, b, c, d], fraction) {
  const left = 1 - fraction;
  const mix = (axis) =>
    left ** 3 * a[axis] +
    3 * left ** 2 * fraction * b[axis] +
    3 * left * fraction ** 2 * c[axis] +
    fraction ** 3 * d[axis];
  return { x: mix("x"), y: mix("y") };
}
