// Draws a state at a moment as SVG.

import { FATES } from "./fates.js";
import { arrowsOf, curveBetween, Layout, pointOf } from "./layout.js";
import { rateOf } from "./model.js";
import { visible } from "./sentences.js";

export const SVG = "http://www.w3.org/2000/svg";
const SHOWN_IN_NODE = 10;
/** From this rate on (messages a second), an arrow shows a flow. */
const FLOW = 20;

function element(name, attributes = {}, text = undefined) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** Set a text, cut to a width. */
function fit(drawn, text, width) {
  drawn.textContent = cut(text, 30);
  const needed = drawn.getComputedTextLength(); // 0 if the picture is hidden
  if (needed > width) drawn.textContent = cut(text, Math.floor((drawn.textContent.length * width) / needed));
  else if (!needed) drawn.textContent = cut(text, 15);
}

/** What a node is called, and its lines. */
export function describe(state, id) {
  const number = (value) => value.toLocaleString("en");
  const kind = id[0];
  if (kind === "x") {
    const exchange = state.exchanges.get(id);
    return { role: "exchange", name: visible(exchange.name) || "(default exchange)", line: exchange.type };
  }
  if (kind === "q") {
    const queue = state.queues.get(id);
    const line =
      queue.type === "stream"
        ? `${number(queue.ready)} ${queue.ready === 1 ? "message" : "messages"}`
        : `${number(queue.ready)} ready · ${number(queue.unacked)} unacked`;
    return { role: queue.type === "stream" ? "stream" : `${queue.type} queue`.trim(), name: visible(queue.name), line };
  }
  if (kind === "c") {
    const consumer = state.consumers.get(id);
    if (consumer.offset !== undefined)
      return { role: "consumer", name: visible(consumer.label), line: `at offset ${number(consumer.offset)}` };
    if (consumer.gone && !consumer.isUnknown)
      return { role: "consumer", name: visible(consumer.label), line: "cancelled or closed" };
    const line = consumer.prefetch ? `prefetch ${number(consumer.prefetch)}` : "consumer";
    return { role: "consumer", name: visible(consumer.label), line };
  }
  return { role: "publisher", name: visible(state.publishers.get(id).name), line: "publisher" };
}

/** The picture. Calls `choose` with the id of a node, or the key of a message, that somebody clicks. */
export class Picture {
  /**
   * @param {SVGSVGElement} svg
   * @param {(what: {node?: string, message?: any}) => void} choose
   */
  constructor(svg, choose) {
    this.svg = svg;
    this.choose = choose;
    this.layout = new Layout();
    this.arrows = svg.appendChild(element("g", { class: "arrows" }));
    this.nodes = svg.appendChild(element("g", { class: "nodes" }));
    this.dots = svg.appendChild(element("g", { class: "dots" }));
    /** @type {Map<string, any>} */
    this.drawnArrows = new Map();
    /** @type {Map<string, any>} */
    this.drawnNodes = new Map();
    /** @type {Map<string, any>} */
    this.drawnDots = new Map();
    this.found = "";
    this.laidOut = "";
  }

  /** Draw the state as it is at `now`. Node places are computed again only if nodes or arrows have changed. */
  draw(state, now) {
    const narrow = this.svg.parentElement.clientWidth < 640;
    const arrows = arrowsOf(state);
    const signature = [
      narrow,
      ...state.exchanges.keys(),
      ...state.queues.keys(),
      ...state.consumers.keys(),
      ...state.publishers.keys(),
      ...arrows.map((arrow) => arrow.key + arrow.label),
    ].join("\n");
    if (signature !== this.laidOut) {
      this.laidOut = signature;
      this.places = this.layout.of(state, narrow);
      const { width, height } = this.places;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height + 30}`);
      this.svg.setAttribute("width", String(width));
      this.svg.setAttribute("height", String(height + 30));
      this.curves = new Map();
      this.drawArrows(arrows);
    }
    this.drawNodes(state);
    this.drawFlows(state, arrows, now);
    this.drawDots(state, now);
  }

  curve(from, to) {
    const key = `${from} ${to}`;
    if (!this.curves.has(key)) this.curves.set(key, curveBetween(this.places, from, to));
    return this.curves.get(key);
  }

  drawArrows(arrows) {
    const there = new Set(arrows.map((arrow) => arrow.key));
    for (const [key, drawn] of this.drawnArrows) {
      if (!there.has(key)) {
        drawn.group.remove();
        this.drawnArrows.delete(key);
      }
    }
    for (const arrow of arrows) {
      const points = this.curve(arrow.from, arrow.to);
      if (!points.length) continue;
      let drawn = this.drawnArrows.get(arrow.key);
      if (!drawn) {
        const group = this.arrows.appendChild(element("g"));
        const path = group.appendChild(element("path", { "marker-end": "url(#head)" }));
        const label = group.appendChild(element("text", { class: "key" }));
        const rate = group.appendChild(element("text", { class: "rate" }));
        drawn = { group, path, label, rate };
        this.drawnArrows.set(arrow.key, drawn);
      }
      drawn.group.setAttribute("class", `arrow ${arrow.kind}`);
      drawn.group.dataset.from = arrow.from;
      drawn.group.dataset.to = arrow.to;
      const [a, b, c, d] = points;
      drawn.path.setAttribute("d", `M${a.x} ${a.y}C${b.x} ${b.y} ${c.x} ${c.y} ${d.x} ${d.y}`);
      const middle = pointOf(points, 0.66);
      for (const [text, shift] of [
        [drawn.label, -6],
        [drawn.rate, 14],
      ]) {
        text.setAttribute("x", String(middle.x));
        text.setAttribute("y", String(middle.y + shift));
      }
      drawn.label.textContent = cut(visible(arrow.label), this.places.narrow ? 14 : 22);
    }
  }

  drawNodes(state) {
    const ids = new Set(this.places.places.keys());
    for (const [id, drawn] of this.drawnNodes) {
      if (!ids.has(id)) {
        drawn.group.remove();
        this.drawnNodes.delete(id);
      }
    }
    const { width, height } = this.places.size;
    for (const [id, place] of this.places.places) {
      let drawn = this.drawnNodes.get(id);
      if (!drawn) drawn = this.newNode(id);
      const { role, name, line } = describe(state, id);
      const words = `${role} ${name}: ${line}`;
      const where = `translate(${place.x - width / 2} ${place.y - height / 2})`;
      if (drawn.where !== where || drawn.width !== width) {
        drawn.group.setAttribute("transform", where);
        drawn.box.setAttribute("d", outline(id[0], width, height));
        const middle = width / 2 + (id[0] === "q" ? 4 : 0);
        for (const text of [drawn.name, drawn.line]) text.setAttribute("x", String(middle));
        Object.assign(drawn, { where, width });
      }
      if (drawn.words !== words || drawn.cut !== width) {
        drawn.cut = width;
        fit(drawn.name, name, width - (id[0] === "q" ? 20 : id[0] === "x" ? 16 : 10));
        drawn.line.textContent = cut(line, this.places.narrow ? 21 : 25);
        drawn.title.textContent = words;
        drawn.group.setAttribute("aria-label", words);
        drawn.group.dataset.role = role;
        drawn.group.dataset.name = name;
        drawn.words = words;
      }
      const isFound = this.found !== "" && name.toLowerCase().includes(this.found);
      drawn.group.classList.toggle("found", isFound);
      drawn.group.classList.toggle("aside", this.found !== "" && !isFound);
    }
  }

  newNode(id) {
    const group = this.nodes.appendChild(element("g", { class: `node ${id[0]}`, tabindex: "0", role: "button" }));
    const title = group.appendChild(element("title"));
    const box = group.appendChild(element("path", { class: "box" }));
    const name = group.appendChild(element("text", { class: "name", y: "19" }));
    const line = group.appendChild(element("text", { class: "line", y: "34" }));
    group.dataset.id = id;
    group.addEventListener("click", () => this.choose({ node: id }));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.choose({ node: id });
    });
    const drawn = { group, title, box, name, line };
    this.drawnNodes.set(id, drawn);
    return drawn;
  }

  drawFlows(state, arrows, now) {
    for (const arrow of arrows) {
      const drawn = this.drawnArrows.get(arrow.key);
      if (!drawn) continue;
      const measured = rateOf(state, arrow);
      const isFlow = measured !== undefined && measured.rate > FLOW && now - measured.t < 5000;
      const about = isFlow && !measured.isExact ? "about " : "";
      const text = isFlow ? `${about}${Math.round(measured.rate).toLocaleString("en")}/s` : "";
      if (drawn.rateText !== text) {
        drawn.rate.textContent = text;
        drawn.rateText = text;
        drawn.group.classList.toggle("flow", isFlow);
      }
      if (isFlow) drawn.path.setAttribute("stroke-dashoffset", String(-((now / 25) % 240)));
    }
  }

  drawDots(state, now) {
    const seen = new Set();
    const moving = new Set();
    for (const motion of state.motions) {
      if (motion.t0 <= now && now < motion.t1) {
        const place = this.placeOfMotion(motion, now);
        if (place) {
          seen.add(`${motion.id}`);
          moving.add(motion.key);
          this.drawDot(`${motion.id}`, place, motion.fate, motion, motion.nodes[motion.nodes.length - 1], "moving");
        }
      } else if (motion.t0 > now) moving.add(motion.key);
    }
    const resting = new Map();
    for (const copy of state.copies.values()) {
      if (copy.busyUntil > now || moving.has(copy.key)) continue;
      const there = resting.get(copy.node) || [];
      there.push(copy);
      resting.set(copy.node, there);
    }
    const { width, height } = this.places.size;
    for (const [node, copies] of resting) {
      const place = this.places.places.get(node);
      if (!place) continue;
      copies.sort((one, other) => one.number - other.number);
      const isStream = copies[0].fate === "stream";
      // Beside a delayed message is the time that is left.
      const pitch = copies[0].until === undefined ? 15 : 44;
      const most = Math.min(SHOWN_IN_NODE, Math.floor((width - 20) / pitch));
      const shown = isStream ? copies.slice(-most).reverse() : copies.slice(0, most);
      shown.forEach((copy, index) => {
        const x = place.x + width / 2 - 14 - index * pitch;
        seen.add(copy.key);
        this.drawDot(
          copy.key,
          { x, y: place.y + height / 2 - 13 },
          copy.fate,
          copy,
          node,
          "resting",
          leftOf(copy, now),
        );
      });
    }
    for (const [key, drawn] of this.drawnDots) {
      if (!seen.has(key)) {
        drawn.group.remove();
        this.drawnDots.delete(key);
      }
    }
  }

  placeOfMotion(motion, now) {
    const legs = motion.nodes.length - 1;
    const done = (now - motion.t0) / (motion.t1 - motion.t0);
    if (legs === 0) {
      const place = this.places.places.get(motion.nodes[0]);
      return place && { x: place.x, y: place.y + this.places.size.height / 2 - 13 };
    }
    const leg = Math.min(legs - 1, Math.floor(done * legs));
    const points = this.curve(motion.nodes[leg], motion.nodes[leg + 1]);
    return points.length ? pointOf(points, done * legs - leg) : null;
  }

  drawDot(key, place, fate, message, node, how, label = "") {
    let drawn = this.drawnDots.get(key);
    if (!drawn) {
      const group = this.dots.appendChild(element("g", {}));
      const shape = group.appendChild(element("path"));
      const left = group.appendChild(element("text", { x: "-9", y: "3.5" }));
      drawn = { group, shape, left };
      group.addEventListener("click", () => this.choose({ message: drawn.message }));
      this.drawnDots.set(key, drawn);
    }
    drawn.message = message;
    const where = `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`;
    if (drawn.where !== where) {
      drawn.group.setAttribute("transform", where);
      drawn.where = where;
    }
    if (drawn.fate !== fate || drawn.how !== how || drawn.node !== node) {
      drawn.group.setAttribute("class", `dot ${fate} ${how}`);
      drawn.shape.setAttribute("d", FATES[fate].shape);
      drawn.group.dataset.fate = fate;
      drawn.group.dataset.node = node;
      Object.assign(drawn, { fate, how, node });
    }
    if (drawn.label !== label) {
      drawn.left.textContent = label;
      drawn.label = label;
    }
  }
}

function leftOf(copy, now) {
  return copy.until === undefined ? "" : `${Math.max(0, Math.ceil((copy.until - now) / 1000))} s`;
}

/** The outline of a node: hexagons are exchanges, cylinders queues, round boxes clients; as in `mqtool topology`. */
function outline(kind, width, height) {
  if (kind === "x") return `M12 0H${width - 12}L${width} ${height / 2}L${width - 12} ${height}H12L0 ${height / 2}Z`;
  if (kind === "q") {
    return `M8 0H${width - 8}A8 ${height / 2} 0 0 1 ${width - 8} ${height}H8A8 ${height / 2} 0 0 1 8 0ZM8 0A8 ${height / 2} 0 0 1 8 ${height}`;
  }
  return `M14 0H${width - 14}A14 14 0 0 1 ${width} 14V${height - 14}A14 14 0 0 1 ${width - 14} ${height}H14A14 14 0 0 1 0 ${height - 14}V14A14 14 0 0 1 14 0Z`;
}
