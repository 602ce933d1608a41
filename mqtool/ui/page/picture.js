// Draws the state at one moment as SVG.

import { FATES } from "./fates.js";
import { Finder } from "./finder.js";
import { arrowsOf, besideMessage, curveBetween, cut, isOver, labelsOf, Layout, pointOf, takenBy } from "./layout.js";
import { addressOf, hasMotion, isAck, labelOf, momentOf, rateOf } from "./model.js";
import { offsetOf, visible } from "./sentences.js";
import { View } from "./view.js";
import { Zoom } from "./zoom.js";

export const SVG = "http://www.w3.org/2000/svg";
/** Up to this many messages at a node are drawn in a row. A number stands for the others. */
const SHOWN_IN_NODE = 10;
const PITCH = 12;
/** Messages are closer together if there must be room for a number beside them. */
const CLOSE_PITCH = 10;
/** The approximate width of a digit of this number, and the width of the margins beside the row and the number. */
const DIGIT = 7;
const BESIDE_NUMBER = 26;
/** The height of a line of an arrow's label. */
const LINE_HEIGHT = 14;
/** The label of a moving message is cut to this number of characters. */
const LONGEST_ADDRESS = 30;
/** In a label, a body is cut to this number of characters. If more than FEW messages move, bodies are not shown. */
const SHORT = 14;
const FEW = 6;
/** Half the width of a character in a moving message's label; the distance of a text from the message or arrow. */
const LABEL = { half: 3.6, beside: 10 };
/** Above this rate (messages per second), an arrow is drawn as a flow. */
const FLOW = 20;

function element(name, attributes = {}, text = undefined) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A text that is a little too wide is drawn narrower, down to this fraction of its width. */
const NARROWEST = 0.8;

/**
 * Set a text. If it does not fit this width, it is drawn narrower; if it does not fit even then, it is cut. Returns
 * whether it is cut.
 */
function fit(drawn, text, width) {
  if (!text && !drawn.textContent) return false;
  drawn.removeAttribute("textLength");
  drawn.textContent = text;
  const needed = drawn.getComputedTextLength(); // 0 if the picture is hidden
  if (text && !needed) drawn.textContent = cut(text, 15);
  if (needed <= width) return false;
  const most = width / NARROWEST;
  let length = Math.min(text.length, Math.ceil((text.length * most) / needed) + 4);
  while (length > 1 && drawn.getComputedTextLength() > most) drawn.textContent = cut(text, length--);
  if (drawn.getComputedTextLength() > width) {
    drawn.setAttribute("textLength", String(width));
    drawn.setAttribute("lengthAdjust", "spacingAndGlyphs");
  }
  return needed > most;
}

/** Set the line below a node's name. If it would be cut, its two counts get a line each, and the name moves up. */
function fitLine({ name, line, below }, text, width) {
  const [first, second] = text.split(" · ");
  const isTwo = fit(line, text, width) && second !== undefined;
  if (isTwo) fit(line, first, width);
  fit(below, isTwo ? second : "", width);
  name.setAttribute("y", isTwo ? "15" : "19");
  line.setAttribute("y", isTwo ? "28" : "34");
}

/** How many unacknowledged messages a consumer may have, in words; "" if this is not known. */
export function limitOf(consumer) {
  if (consumer.isUnknown) return "";
  if (consumer.prefetch === null) return consumer.credit ? `credit ${number(consumer.credit)}` : "";
  if (consumer.isAutomatic) return "auto-ack";
  return consumer.prefetch ? `prefetch ${consumer.prefetch.toLocaleString("en")}` : "prefetch 0: no limit";
}

const number = (value) => value.toLocaleString("en");

/** The role, name and line of a group. */
function describeGroup(node, moment) {
  const many = number(node.members.length);
  const what = { x: "exchanges", q: "queues", c: "consumers", p: "publishers" }[node.id[0]];
  const role = `group of ${many} ${what}`;
  const name = visible(node.label ?? node.name);
  if (what === "queues") {
    const { ready, unacked } = moment.counts.get(node.id) ?? node;
    return { role, name, line: `${number(ready)} ready · ${number(unacked)} unacked` };
  }
  return { role, name, line: what === "consumers" ? limitOf(node) || what : what };
}

const GONE = "cancelled or closed";

/** Whether there is a terminal with this name in which no program runs. */
const hasFinished = ({ play }, name) => play?.terminals.some((each) => each.name === name && each.runs === null);

/** What a consumer's box says below its name. */
function lineOfConsumer(state, moment, consumer) {
  if (consumer.offset !== undefined) return `at offset ${number(consumer.offset)}`;
  const hasEnded = consumer.isUnknown ? hasFinished(state, consumer.label) : consumer.gone;
  if (hasEnded && !hasMotion(state, consumer.id, moment.now)) return GONE;
  return limitOf(consumer);
}

/** The role, name and line of a terminal that is several nodes in one box. */
function describeJoined(state, moment, { joined }) {
  const consumer = joined[joined.length - 1];
  const line = lineOfConsumer(state, moment, consumer);
  const isPublisher = joined[0].queue === undefined;
  const words = line === GONE ? [line] : [isPublisher && "publisher", line];
  return {
    role: isPublisher ? "publisher and consumer" : "consumer",
    name: visible(consumer.label),
    line: words.filter(Boolean).join(" · ") || "consumer",
  };
}

/** Whether a terminal shows this name, so that people may look for it in the picture. */
const isPrinted = ({ play }, name) =>
  play?.terminals.some(({ lines }) => lines.some(({ text }) => text.includes(name))) === true;

/**
 * The texts of a node: its role, its name, the line below the name, and a note below its box. The line is empty if it
 * would only repeat the name.
 * @param {import("./model.js").Moment} moment
 * @returns {{role: string, name: string, line: string, note?: string}}
 */
export function describe(state, moment, id) {
  const described = describeNode(state, moment, id);
  return described.line === described.name ? { ...described, line: "" } : described;
}

function describeNode(state, moment, id) {
  const kind = id[0];
  const node = nodeOf(state, id);
  if (node?.members) return describeGroup(node, moment);
  if (node?.joined) return describeJoined(state, moment, node);
  if (kind === "x") {
    const exchange = state.exchanges.get(id);
    return { role: "exchange", name: visible(exchange.name) || "(default exchange)", line: exchange.type };
  }
  if (kind === "q") {
    const queue = state.queues.get(id);
    const { ready, unacked } = moment.counts.get(id) ?? queue;
    const line =
      queue.type === "stream"
        ? `${number(ready)} ${ready === 1 ? "message" : "messages"}`
        : `${number(ready)} ready · ${number(unacked)} unacked`;
    return {
      role: queue.type === "stream" ? "stream" : `${queue.type} queue`.trim(),
      name: visible(isPrinted(state, queue.name) ? queue.name : labelOf(queue)),
      line,
      note: queue.stored && offsetOf(queue.stored),
    };
  }
  if (kind === "c") {
    const consumer = state.consumers.get(id);
    const line = lineOfConsumer(state, moment, consumer) || "consumer";
    return { role: "consumer", name: visible(consumer.label), line };
  }
  return { role: "publisher", name: visible(state.publishers.get(id).name), line: "publisher" };
}

/** @returns {any} the node with this id, in a state or in what View.of() returns */
export const nodeOf = ({ exchanges, queues, consumers, publishers }, id) =>
  exchanges.get(id) ?? queues.get(id) ?? consumers.get(id) ?? publishers.get(id);

/** The picture. Calls `choose` with the node or message that the user clicks. */
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
    // Labels are drawn after all arrows, so that no arrow crosses a label.
    this.words = svg.appendChild(element("g"));
    this.nodes = svg.appendChild(element("g", { class: "nodes" }));
    this.dots = svg.appendChild(element("g", { class: "dots" }));
    /** @type {Map<string, any>} */
    this.drawnArrows = new Map();
    /** @type {Map<string, any>} */
    this.drawnNodes = new Map();
    /** @type {Map<string, any>} */
    this.drawnDots = new Map();
    /** The messages and counts that are drawn. */
    this.moment = momentOf({ motions: [], copies: new Map(), queues: new Map() }, 0);
    this.view = new View();
    this.zoom = new Zoom(svg.parentElement, svg);
    this.finder = new Finder();
    /** The nodes and links that are drawn, see View.of(). */
    this.shown = null;
    /** The node that gets the focus once it is drawn. */
    this.awaited = null;
    this.laidOut = "";
  }

  /** Draw the state as it is at `now`. Places are computed again only if nodes or arrows have changed. */
  draw(state, now) {
    // The same condition as in the style sheet.
    const narrow = matchMedia("(max-width: 50rem)").matches;
    const shown = this.view.of(state);
    this.shown = shown;
    const arrows = arrowsOf(shown, state);
    const signature = [
      narrow,
      ...shown.exchanges.keys(),
      ...shown.queues.keys(),
      ...shown.consumers.keys(),
      ...shown.publishers.keys(),
      ...arrows.map((arrow) => arrow.key + arrow.label),
      ...[...shown.queues.values()].map(({ stored }) => stored !== undefined),
    ].join("\n");
    if (signature !== this.laidOut) {
      this.laidOut = signature;
      this.places = this.layout.of(shown, narrow, arrows);
      const { width, height } = this.places;
      this.svg.classList.toggle("narrow", narrow);
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.curves = new Map();
      this.drawArrows(arrows);
    }
    this.zoom.resize(this.places.width, this.places.height);
    this.moment = momentOf(state, now);
    this.gather(shown);
    this.finder.search(state, this.moment, shown, namesOf(state));
    this.drawNodes(shown);
    this.drawFlows(state, arrows, now);
    this.drawDots(shown, now, state);
    this.svg.dataset.now = String(now);
    const awaited = this.awaited && this.drawnNodes.get(this.awaited);
    if (awaited) {
      this.awaited = null;
      awaited.group.focus();
    }
  }

  /** Add the messages and counts of groups, and of several nodes in one box, to the moment. */
  gather(shown) {
    const { counts, resting } = this.moment;
    for (const kind of ["exchanges", "queues", "consumers", "publishers"]) {
      for (const { id, members, joined } of shown[kind].values()) {
        const parts = members ?? joined?.map((each) => each.id);
        if (!parts) continue;
        const copies = parts.flatMap((part) => resting.get(part) ?? []);
        if (copies.length) resting.set(id, copies);
        if (kind !== "queues") continue;
        const each = parts.map((part) => counts.get(part));
        const sum = (what) => each.reduce((all, count) => all + count[what], 0);
        counts.set(id, { ready: sum("ready"), unacked: sum("unacked") });
      }
    }
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
        drawn.words.remove();
        this.drawnArrows.delete(key);
      }
    }
    const labels = labelsOf(this.places, arrows, (from, to) => this.curve(from, to));
    this.labels = labels;
    const streams = [...this.shown.queues.values()].filter(({ stored }) => stored !== undefined);
    this.taken = takenBy(
      this.places,
      labels,
      streams.map(({ id }) => id),
    );
    for (const arrow of arrows) {
      const points = this.curve(arrow.from, arrow.to);
      if (!points.length) continue;
      let drawn = this.drawnArrows.get(arrow.key);
      if (!drawn) {
        const group = this.arrows.appendChild(element("g"));
        const title = group.appendChild(element("title"));
        const path = group.appendChild(element("path", { "marker-end": "url(#head)" }));
        const words = this.words.appendChild(element("g", { class: "arrow-words" }));
        const whole = words.appendChild(element("title"));
        const label = words.appendChild(element("text", { class: "key" }));
        const rate = words.appendChild(element("text", { class: "rate" }));
        drawn = { group, words, title, whole, path, label, rate };
        this.drawnArrows.set(arrow.key, drawn);
      }
      drawn.group.setAttribute("class", `arrow ${arrow.kind}`);
      drawn.isFlow = false;
      drawn.group.dataset.from = arrow.from;
      drawn.group.dataset.to = arrow.to;
      const [first, ...rest] = points.map((each) => `${each.x} ${each.y}`);
      drawn.path.setAttribute("d", `M${first}C${rest.join(" ")}`);
      const { x, y, lines, rate, beside } = labels.get(arrow.key);
      drawn.label.replaceChildren(
        ...lines.map((line, index) =>
          element("tspan", { x: String(x), y: String(y + index * LINE_HEIGHT) }, visible(line)),
        ),
      );
      drawn.title.textContent = drawn.whole.textContent = visible(arrow.label);
      drawn.words.dataset.arrow = arrow.key;
      drawn.rate.setAttribute("x", String(x + beside));
      drawn.rate.classList.toggle("beside", beside > 0);
      drawn.rate.setAttribute("y", String(y + rate));
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
      const { role, name, line, note = "" } = describe(state, this.moment, id);
      const title = role === name ? name : `${role} ${name}`;
      const words = [[title, line].filter(Boolean).join(": "), note].filter(Boolean).join(" · ");
      const where = `translate(${place.x - width / 2} ${place.y - height / 2})`;
      if (drawn.where !== where || drawn.width !== width) {
        drawn.group.setAttribute("transform", where);
        drawn.box.setAttribute("d", outline(id[0], width, height));
        drawn.behind.setAttribute("d", drawn.isGroup ? outline(id[0], width, height) : "");
        drawn.count.setAttribute("x", String(width - (id[0] === "q" ? 12 : 14)));
        const middle = width / 2 + (id[0] === "q" ? 6 : 0);
        for (const text of [drawn.name, drawn.line, drawn.below]) text.setAttribute("x", String(middle));
        // In a narrow picture, messages move along the arrow that leads down, so put the note beside it.
        drawn.note.setAttribute("x", String(this.places.narrow ? width / 2 - LABEL.beside : middle));
        Object.assign(drawn, { where, width });
      }
      if (drawn.words !== words || drawn.cut !== width) {
        drawn.cut = width;
        const beside = (id[0] === "q" ? 28 : id[0] === "x" ? 22 : 10) + (drawn.isGroup ? 56 : 0);
        fit(drawn.name, name, width - beside);
        fitLine(drawn, line, width - (id[0] === "q" ? 24 : 10));
        fit(drawn.note, note, Math.max(width, 160));
        drawn.title.textContent = drawn.isGroup ? `${words}. Click to unfold` : words;
        drawn.group.setAttribute("aria-label", words);
        drawn.count.textContent = drawn.isGroup ? `×${number(nodeOf(state, id).members.length)}` : "";
        drawn.group.dataset.role = role;
        drawn.group.dataset.name = name;
        drawn.group.dataset.queue = state.consumers.get(id)?.queue ?? "";
        drawn.words = words;
      }
      const isFound = this.finder.nodes.has(id);
      const isBusy = (id[0] === "c" || id[0] === "p") && this.moment.resting.has(id);
      const isAside = this.finder.hasFound && !isFound;
      const looks = `${isBusy} ${isFound} ${isAside}`;
      if (drawn.looks === looks) continue;
      drawn.looks = looks;
      drawn.group.classList.toggle("busy", isBusy);
      drawn.group.classList.toggle("found", isFound);
      drawn.group.classList.toggle("aside", isAside);
    }
    for (const [key, drawn] of this.drawnArrows) {
      const isFound = this.finder.arrows.has(key);
      if (drawn.isFound !== isFound) drawn.words.classList.toggle("found", isFound);
      drawn.isFound = isFound;
    }
  }

  newNode(id) {
    const group = this.nodes.appendChild(element("g", { class: `node ${id[0]}`, tabindex: "0", role: "button" }));
    const title = group.appendChild(element("title"));
    const behind = group.appendChild(element("path", { class: "behind", transform: "translate(5 5)" }));
    const box = group.appendChild(element("path", { class: "box" }));
    const name = group.appendChild(element("text", { class: "name" }));
    const line = group.appendChild(element("text", { class: "line" }));
    const below = group.appendChild(element("text", { class: "below", y: "40" }));
    const note = group.appendChild(element("text", { class: "note", y: String(this.places.size.height + 14) }));
    const count = group.appendChild(element("text", { class: "count", y: "19" }));
    const more = group.appendChild(element("text", { class: "more" }));
    group.dataset.id = id;
    const isGroup = nodeOf(this.shown, id)?.members !== undefined;
    if (isGroup) group.setAttribute("aria-expanded", "false");
    const act = () => (isGroup ? this.unfold(id) : this.choose({ node: id }));
    group.addEventListener("click", act);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter") act();
    });
    const drawn = { group, title, behind, box, name, line, below, note, count, more, moreText: "", isGroup };
    this.drawnNodes.set(id, drawn);
    return drawn;
  }

  /** Show the members of a group, and give the focus to the first one. */
  unfold(id) {
    const [first] = nodeOf(this.shown, id).members;
    this.view.toggle(id);
    this.awaited = first;
  }

  /** Show a group as one node again, and give it the focus. */
  foldAgain(id) {
    this.view.toggle(id);
    this.awaited = id;
  }

  drawFlows(state, arrows, now) {
    for (const arrow of arrows) {
      const drawn = this.drawnArrows.get(arrow.key);
      if (!drawn) continue;
      const measured = arrow.parts.map((part) => rateOf(state, part)).filter(Boolean);
      const rate = measured.reduce((sum, each) => sum + each.rate, 0);
      const isFlow = rate > FLOW;
      const about = measured.every((each) => each.isExact) ? "" : "about ";
      // A play shows no rates: a momentary rate would contradict what a tutorial measures over a whole run.
      const text = isFlow && !state.play ? `${about}${number(Math.round(rate))}/s` : "";
      if (drawn.rateText !== text) {
        drawn.rate.textContent = text;
        drawn.rateText = text;
      }
      if (drawn.isFlow !== isFlow) drawn.group.classList.toggle("flow", isFlow);
      drawn.isFlow = isFlow;
      if (isFlow) drawn.path.setAttribute("stroke-dashoffset", String(-((now / 25) % 240)));
    }
  }

  drawDots(shown, now, state) {
    const seen = new Set();
    const ends = new Map();
    const labelled = [];
    const placed = [];
    const isFew = this.moment.moving.filter(({ confirms }) => !confirms).length <= FEW;
    for (const id of this.places.places.keys()) this.drawRow(shown, id, now, seen);
    for (const motion of this.moment.moving) {
      const node = this.shown.drawn(motion.nodes[0]);
      const index = motion.nodes.length > 1 ? 0 : ends.get(node) || 0;
      if (motion.nodes.length === 1) ends.set(node, index + 1);
      const place = this.placeOfMotion(motion, now, index);
      if (place) placed.push({ motion, place, dot: boxOfDot(place) });
    }
    const dots = placed.map(({ dot }) => dot);
    for (const { motion, place, dot } of placed) {
      seen.add(`${motion.id}`);
      const end = this.shown.drawn(motion.nodes[motion.nodes.length - 1]);
      const label = cut(visible(besideOf(state, motion, isFew)), LONGEST_ADDRESS);
      const half = label.length * LABEL.half;
      const others = dots.filter((each) => each !== dot);
      const at = label ? this.placeOfLabel(motion, place, half, others) : undefined;
      // A label that would cover another message's label is not shown.
      const isFree = at !== undefined && !labelled.some((each) => isOver(each, at));
      if (isFree) labelled.push(at);
      const isEnd = motion.nodes.length === 1;
      const how = isEnd ? "moving ended" : "moving";
      this.drawDot(`${motion.id}`, place, motion.fate, motion, end, how, isFree ? label : "", isEnd ? undefined : at);
    }
    for (const [key, drawn] of this.drawnDots) {
      if (!seen.has(key)) {
        drawn.group.remove();
        this.drawnDots.delete(key);
      }
    }
  }

  /** Draw the messages at a node, the next one first. Messages that are only counted are drawn without details. */
  drawRow(state, id, now, seen) {
    const { resting, counts } = this.moment;
    const copies = resting.get(id) || [];
    const uncopied = counts.has(id) ? state.queues.get(id).uncopied.ready : 0;
    const drawn = this.drawnNodes.get(id);
    let more = 0;
    if (copies.length || uncopied) {
      copies.sort((one, other) => one.number - other.number);
      const isStream = id[0] === "q" && state.queues.get(id).type === "stream";
      // Beside a delayed message, there must be room for the time that is left.
      const isDelayed = copies.length > 0 && copies[0].until !== undefined;
      const all = copies.length + uncopied;
      const pitch = isDelayed ? 44 : all > SHOWN_IN_NODE ? CLOSE_PITCH : PITCH;
      const most = mostInRow(this.places.size.width, pitch, all);
      const shown = isStream ? copies.slice(-most).reverse() : copies.slice(0, most);
      shown.forEach((copy, index) => {
        seen.add(copy.key);
        this.drawDot(copy.key, this.placeInRow(id, index * pitch), copy.fate, copy, id, "resting", leftOf(copy, now));
      });
      const others = Math.min(uncopied, most - shown.length);
      for (let index = shown.length; index < shown.length + others; index += 1) {
        const key = `${id} ${index}`;
        seen.add(key);
        this.drawDot(key, this.placeInRow(id, index * pitch), isStream ? "stream" : "ready", null, id, "resting");
      }
      more = all - shown.length - others;
      const { x, y } = this.placeInRow(id, (shown.length + others) * pitch - 4);
      const { x: left, y: top } = this.places.places.get(id);
      drawn.more.setAttribute("x", String(x - left + this.places.size.width / 2));
      drawn.more.setAttribute("y", String(y - top + this.places.size.height / 2 + 4));
    }
    // Unacknowledged messages that are only counted are not drawn, because it is not known which consumer has them.
    const counted = counts.has(id) ? String(state.queues.get(id).uncopied.unacked) : "";
    if (drawn.counted !== counted) drawn.group.dataset.counted = drawn.counted = counted;
    const text = more ? `+${number(more)}` : "";
    if (drawn.moreText !== text) drawn.more.textContent = drawn.moreText = text;
  }

  /**
   * A place where the label of a message covers none of the other moving messages (`dots`); undefined if there is none.
   * At a node, the label must not cover messages at rest either; on an arrow, neither names nor the labels of arrows.
   */
  placeOfLabel(motion, place, half, dots) {
    const isFree = (at) => !dots.some((dot) => isOver(dot, at));
    if (motion.nodes.length === 1) {
      const at = { x: place.x + LABEL.beside + half, y: place.y, half, height: 0 };
      return at.x + half < this.leftOfRow(this.shown.drawn(motion.nodes[0])) && isFree(at) ? at : undefined;
    }
    const sides = besideMessage(this.places, this.labels, place, half);
    return sides.find((side) => isFree(side) && !this.taken.some((each) => isOver(each, side)));
  }

  /** The left end of a node's row of messages; -Infinity if a number stands beside it. */
  leftOfRow(id) {
    const { moreText } = this.drawnNodes.get(id);
    const drawn = moreText ? Infinity : (this.moment.resting.get(id)?.length ?? 0);
    return this.placeInRow(id, drawn * PITCH).x;
  }

  placeInRow(id, from) {
    const { x, y } = this.places.places.get(id);
    const { width, height } = this.places.size;
    return { x: x + width / 2 - 14 - from, y: y + height / 2 - 13 };
  }

  placeOfMotion(motion, now, index) {
    const legs = motion.nodes.length - 1;
    const done = (now - motion.t0) / (motion.t1 - motion.t0);
    if (legs === 0) {
      const id = this.shown.drawn(motion.nodes[0]);
      const place = this.places.places.get(id);
      if (!place) return null;
      // Start at the left, because messages at rest are on the right. If a number is beside these, use the box's lower
      // edge, so that the message does not cover the number.
      const { width, height } = this.places.size;
      const above = this.drawnNodes.get(id).moreText ? 0 : 13;
      return { x: place.x - width / 2 + 20 + (index % 8) * (PITCH + 3), y: place.y + height / 2 - above };
    }
    const leg = Math.min(legs - 1, Math.floor(done * legs));
    let [from, to] = [this.shown.drawn(motion.nodes[leg]), this.shown.drawn(motion.nodes[leg + 1])];
    let part = done * legs - leg;
    // No arrow leads from an exchange to a consumer. If a box is both a publisher and a consumer, what returns to it
    // takes the arrow along which it publishes.
    if (from[0] === "x" && to[0] === "c") [from, to, part] = [to, from, 1 - part];
    const points = this.curve(from, to);
    return points.length ? { ...pointOf(points, part * part * (3 - 2 * part)), from, to } : null;
  }

  drawDot(key, place, fate, message, node, how, label = "", labelAt = undefined) {
    let drawn = this.drawnDots.get(key);
    if (!drawn) {
      const group = this.dots.appendChild(element("g", {}));
      const shape = group.appendChild(element("path"));
      const left = group.appendChild(element("text", { x: "-9", y: "3.5" }));
      drawn = { group, shape, left };
      group.addEventListener("click", () =>
        this.choose(drawn.message?.details ? { message: drawn.message } : { node: drawn.node }),
      );
      this.drawnDots.set(key, drawn);
    }
    drawn.message = message;
    if (this.finder.hasFound || drawn.isSought) {
      const isFound = this.finder.hasMessage(message?.details);
      drawn.isSought = this.finder.hasFound;
      drawn.group.classList.toggle("found", isFound);
      drawn.group.classList.toggle("aside", drawn.isSought && !isFound);
    }
    const where = `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`;
    if (drawn.where !== where) {
      drawn.group.setAttribute("transform", where);
      drawn.where = where;
    }
    const queue = message?.place === undefined ? "" : this.shown.drawn(message.place);
    if (drawn.fate !== fate || drawn.how !== how || drawn.node !== node || drawn.queue !== queue) {
      drawn.group.setAttribute("class", `dot ${fate} ${how}`);
      drawn.isSought = this.finder.hasFound;
      drawn.shape.setAttribute("d", FATES[fate].shape);
      drawn.group.dataset.fate = fate;
      drawn.group.dataset.node = node;
      drawn.group.dataset.queue = queue;
      Object.assign(drawn, { fate, how, node, queue });
    }
    if (drawn.label !== label) {
      drawn.left.textContent = label;
      drawn.label = label;
    }
    if (label && labelAt) {
      drawn.left.setAttribute("x", String(labelAt.x - place.x));
      drawn.left.setAttribute("y", String(labelAt.y - place.y));
    }
  }
}

/**
 * The label of a moving message; "" if it has none. On the way to a queue: what the message is routed by. In a play, if
 * that explains nothing and few messages move: the body, also of a message that is lost. A confirm: the number of
 * messages that it confirms. A message from a stream: its offset. A message to a queue that does not exist: the queue's
 * name.
 */
function besideOf(state, { nodes, fate, details, offset, unknown, confirms }, isFew) {
  if (confirms !== undefined) {
    const what = fate === "confirmed" ? "confirm" : "nack";
    return state.play && isFew ? what + (confirms > 1 ? ` of ${number(confirms)}` : "") : "";
  }
  if (offset !== undefined) return isFew && offset >= 0 ? `offset ${number(offset)}` : "";
  if (unknown !== undefined) return `${fate === "returned" ? "no queue" : "to"} ${cut(visible(unknown), SHORT)}`;
  const isRouted = nodes.some((id) => id[0] === "x") && !(state.play && hasOneKey(state, details));
  const address = isRouted ? addressOf(state, details) : "";
  const isDone = nodes.length === 1 && fate === "acknowledged";
  const hasBody = state.play && isFew && !isDone && typeof details.body === "string";
  if (hasBody && isAck({ nodes, fate })) return "ack";
  if (address || !hasBody) return address;
  const id = details.properties.correlation_id;
  // The beginning of the ID is enough to distinguish the replies that are shown together.
  return cut(details.body, SHORT) + (typeof id === "string" ? ` · id ${id.slice(0, 4)}` : "");
}

/** Whether all bindings of a message's exchange have the message's routing key, so that the key explains nothing. */
function hasOneKey({ links }, { exchange, routing_key }) {
  const found = [...links.values()].filter(({ from }) => from === `x:${exchange}`);
  return found.length > 0 && found.every(({ keys, more }) => !more && keys.every((key) => key === routing_key));
}

/** The area that the dot of a message covers, as a Box, see layout.js. */
const boxOfDot = ({ x, y }) => ({ x, y: y + 5, half: 6, height: -2 });

/** Yield each node's id and name, for the search; for a queue, both its label and its full name. */
function* namesOf(state) {
  for (const { id, name } of state.exchanges.values()) yield [id, name];
  for (const queue of state.queues.values()) yield [queue.id, `${labelOf(queue)}\n${queue.name}`];
  for (const { id, label } of state.consumers.values()) yield [id, label];
  for (const { id, name } of state.publishers.values()) yield [id, name];
}

/** How many of all messages at a node are drawn in its row, so that the number of the others fits, too. */
function mostInRow(width, pitch, all) {
  const most = Math.min(SHOWN_IN_NODE, Math.floor((width - 34) / pitch));
  const digits = `+${number(all)}`.length * DIGIT;
  return all <= most ? most : Math.min(most, Math.floor((width - BESIDE_NUMBER - digits) / pitch));
}

function leftOf(copy, now) {
  return copy.until === undefined ? "" : `${Math.max(0, Math.ceil((copy.until - now) / 1000))} s`;
}

/** The outline of a node: a hexagon for an exchange, a cylinder for a queue, a round box for a client. */
function outline(kind, width, height) {
  if (kind === "x") return `M12 0H${width - 12}L${width} ${height / 2}L${width - 12} ${height}H12L0 ${height / 2}Z`;
  if (kind === "q") {
    return `M8 0H${width - 8}A8 ${height / 2} 0 0 1 ${width - 8} ${height}H8A8 ${height / 2} 0 0 1 8 0ZM8 0A8 ${height / 2} 0 0 1 8 ${height}`;
  }
  return `M14 0H${width - 14}A14 14 0 0 1 ${width} 14V${height - 14}A14 14 0 0 1 ${width - 14} ${height}H14A14 14 0 0 1 0 ${height - 14}V14A14 14 0 0 1 14 0Z`;
}
