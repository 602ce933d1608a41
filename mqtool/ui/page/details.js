// The panel with the details of a node or message, and the tables with the same information as the picture. Names,
// headers and bodies come from strangers, so they are only ever set as text, never as HTML.

import { joinedKeys, labelOf } from "./model.js";
import { describe, limitOf, nodeOf } from "./picture.js";
import { offsetOf, visible } from "./sentences.js";

const KEPT_MESSAGE_ROWS = 100;
/** The panel lists up to this many of the messages at a node. */
const LISTED = 10;

/** Show a list of names and values. */
function facts(parent, pairs) {
  const made = document.createElement("dl");
  for (const [name, value] of pairs) {
    const term = document.createElement("dt");
    term.textContent = name;
    const definition = document.createElement("dd");
    definition.textContent = typeof value === "string" ? value : JSON.stringify(value, null, 1);
    made.append(term, definition);
  }
  parent.append(made);
}

const titleOf = (id) => visible(id.slice(2)) || "(default exchange)";

/** The name of one end of an arrow, with the arrow's keys. */
function routeTo(id, { keys, more }) {
  const shown = keys.filter((key) => key !== "");
  if (more) shown.push(`${more.toLocaleString("en")} more`);
  return titleOf(id) + (shown.length ? ` (${visible(joinedKeys(shown))})` : "");
}

const hasAny = (value) => value && Object.keys(value).length > 0;

function ofMessage(state, message) {
  const { details } = message;
  const there = message.key === undefined ? undefined : state.copies.get(message.key);
  const pairs = [
    ["exchange", details.exchange || "(default exchange)"],
    ["routing key", details.routing_key],
  ];
  const fate = there ? there.fate : message.fate;
  if (fate) pairs.push(["state", fate]);
  if (hasAny(details.properties)) pairs.push(["properties", details.properties]);
  if (hasAny(details.headers)) pairs.push(["headers", details.headers]);
  const body = details.body === undefined ? `Base64: ${details.body_base64}` : details.body;
  pairs.push([`body, ${details.size.toLocaleString("en")} ${details.size === 1 ? "byte" : "bytes"}`, body]);
  if (there && there.history.length) pairs.push(["so far", there.history.join("\n")]);
  return { title: "Message", pairs };
}

/** A message in a list: its routing key, and the start of its body. */
function titleOfMessage({ routing_key, body }) {
  const start = body === undefined ? "(binary)" : body.slice(0, 60);
  return visible(routing_key ? `${routing_key}: ${start}` : start);
}

function listOf(copies) {
  const shown = [...copies].sort((one, other) => one.number - other.number).slice(0, LISTED);
  const more = copies.length - shown.length;
  const lines = shown.map((copy) => `${titleOfMessage(copy.details)} (${copy.fate})`);
  return [...lines, ...(more ? [`and ${more.toLocaleString("en")} more`] : [])].join("\n");
}

function ofNode(state, shown, moment, id) {
  const joined = nodeOf(shown, id)?.joined;
  const { role, name, line } = describe(joined ? shown : state, moment, id);
  const pairs = [["name", name], ...(line ? [["now", line]] : [])];
  const links = [...state.links.values()];
  if (id[0] === "x") {
    const exchange = state.exchanges.get(id);
    if (exchange.alternate) pairs.push(["alternate exchange", visible(exchange.alternate)]);
    const bound = links.filter((link) => link.from === id).map((link) => routeTo(link.to, link));
    pairs.push(["bindings", bound.join("\n") || "none"]);
  } else if (id[0] === "q") {
    const queue = state.queues.get(id);
    if (labelOf(queue) !== queue.name) pairs.push(["full name", visible(queue.name)]);
    if (queue.stored) pairs.push(["stored last", offsetOf(queue.stored)]);
    const bound = links.filter((link) => link.to === id).map((link) => routeTo(link.from, link));
    pairs.push(["bound to", bound.join("\n") || "only the default exchange"]);
    if (hasAny(queue.arguments)) pairs.push(["arguments and policy", queue.arguments]);
    const consumers = [...state.consumers.values()].filter((each) => each.queue === id && !each.gone);
    pairs.push([
      "consumers",
      consumers.map((each) => [each.label, limitOf(each)].filter(Boolean).join(", ")).join("\n") || "none",
    ]);
  } else {
    for (const { queue, name: connection } of joined ?? [nodeOf(state, id)]) {
      if (queue !== undefined) pairs.push(["queue", queue.slice(2)], ["connection", connection || ""]);
    }
  }
  const ids = joined ? joined.map((each) => each.id) : [id];
  const inside = [...state.copies.values()].filter((each) => ids.includes(each.node));
  if (inside.length) pairs.push(["messages", listOf(inside)]);
  return { title: role[0].toUpperCase() + role.slice(1), pairs };
}

/** Fill the panel. `shown` is what the picture shows of the state, see View.of(). */
export function details(parent, state, shown, moment, chosen) {
  const isThere =
    chosen.message ||
    state.exchanges.has(chosen.node) ||
    state.queues.has(chosen.node) ||
    state.consumers.has(chosen.node) ||
    state.publishers.has(chosen.node);
  const { title, pairs } = !isThere
    ? { title: "Gone", pairs: [["name", chosen.node.slice(2)]] }
    : chosen.message
      ? ofMessage(state, chosen.message)
      : ofNode(state, shown, moment, chosen.node);
  const text = JSON.stringify([title, pairs]);
  if (parent.dataset.shown === text) return; // keeps the text that the user has selected
  parent.dataset.shown = text;
  const heading = document.createElement("h2");
  heading.textContent = title;
  parent.replaceChildren(heading);
  facts(parent, pairs);
}

/**
 * @typedef {object} Row
 * @property {string} key
 * @property {any[]} cells
 * @property {() => void} [open]  shows more about the row; if present, the row's first cell has a button for it
 */

/** @param {Row} wanted */
function newRow({ key, cells, open }) {
  /** @type {any} */
  const row = document.createElement("tr");
  row.dataset.key = key;
  cells.forEach((_, index) => {
    const made = row.appendChild(document.createElement(index ? "td" : "th"));
    if (!index) made.scope = "row";
    if (index || !open) return;
    const button = made.appendChild(document.createElement("button"));
    button.type = "button";
    button.addEventListener("click", () => row.open());
  });
  return row;
}

/**
 * Show these rows. Rows that are already shown keep their elements, and with them the focus.
 * @param {HTMLElement} body
 * @param {Row[]} rows
 */
function fill(body, rows) {
  const text = JSON.stringify(rows);
  if (body.dataset.shown === text) return;
  body.dataset.shown = text;
  const before = new Map([...body.children].map((/** @type {any} */ row) => [row.dataset.key, row]));
  const wanted = rows.map((each) => {
    const row = before.get(each.key) ?? newRow(each);
    row.open = each.open;
    each.cells.forEach((cell, index) => {
      const shown = row.children[index].firstElementChild ?? row.children[index];
      if (shown.textContent !== String(cell)) shown.textContent = String(cell);
    });
    before.delete(each.key);
    return row;
  });
  for (const row of before.values()) row.remove();
  wanted.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
}

function rowOfQueue(state, moment, queue) {
  const { ready, unacked } = moment.counts.get(queue.id) ?? queue;
  const consumers = [...state.consumers.values()].filter((each) => each.queue === queue.id && !each.gone).length;
  const { deadLetterExchange, deadLetterKey } = queue;
  const key = deadLetterKey ? ` with key ${visible(deadLetterKey)}` : "";
  const dead = deadLetterExchange === null ? "" : titleOf(`x:${deadLetterExchange}`) + key;
  const rate = Math.round(state.rates.get(queue.id)?.rate ?? 0);
  const label = labelOf(queue);
  const name = visible(label === queue.name ? label : `${label} (${queue.name})`);
  return [name, queue.type, ready, unacked, consumers, rate, dead];
}

function rowOfExchange(state, moment, exchange) {
  const links = [...state.links.values()].filter((link) => link.from === exchange.id);
  return [
    titleOf(exchange.id),
    exchange.type,
    links.map((link) => routeTo(link.to, link)).join(", "),
    visible(exchange.alternate ?? ""),
  ];
}

/** The rows of publishers and consumers. Several nodes in one box of a play's picture are one row. */
function rowsOfClients(state, shown, moment) {
  const boxes = [...shown.publishers.values(), ...shown.consumers.values()].filter(({ joined }) => joined);
  const inBoxes = new Set(boxes.flatMap(({ joined }) => joined.map(({ id }) => id)));
  const others = [...state.publishers.values(), ...state.consumers.values()].filter(({ id }) => !inBoxes.has(id));
  return [...boxes, ...others].map(({ id, joined, ...node }) => {
    const { name, role, line } = describe(joined ? shown : state, moment, id);
    const ends = (joined ?? [node]).flatMap(({ targets, queue }) => (targets ? [...targets.keys()] : [queue]));
    return { key: id, cells: [name, role, ends.map(titleOf).join(", "), line === role ? "" : line] };
  });
}

function rowsOfMessages(state, moment, choose) {
  const copies = [...state.copies.values()].sort((one, other) =>
    one.place === other.place ? one.number - other.number : one.place < other.place ? -1 : 1,
  );
  return copies.slice(0, KEPT_MESSAGE_ROWS).map((copy) => {
    const { details, fate, node, key, until } = copy;
    const left = until === undefined ? "" : `, until ${new Date(until).toLocaleTimeString()}`;
    const where = describe(state, moment, node).name;
    return {
      key,
      cells: [titleOfMessage(details), where, fate + left],
      open: () => choose({ message: copy }),
    };
  });
}

/**
 * Fill the tables and the list of events. `shown` is what the picture shows of the state; `choose` shows the details of
 * a message.
 */
export function fillTables(parent, state, shown, moment, choose) {
  if (parent.hidden) return;
  const show = (id, rows) => fill(parent.querySelector(`#${id} tbody`), rows);
  const of = (nodes, cells) => [...nodes.values()].map((each) => ({ key: each.id, cells: cells(state, moment, each) }));
  show("queues", of(state.queues, rowOfQueue));
  show("exchanges", of(state.exchanges, rowOfExchange));
  show("clients", rowsOfClients(state, shown, moment));
  const messages = rowsOfMessages(state, moment, choose);
  show("messages", messages);
  const all = state.copies.size;
  const cut = all > messages.length ? `, the first ${messages.length} of ${all.toLocaleString("en")}` : "";
  parent.querySelector("#messages caption").textContent = `Messages in queues${cut}`;
  parent.querySelector("#messages").hidden = !all;
  const said = state.sentences.slice(-50).reverse();
  show(
    "happened",
    said.map(({ n, t, text, message }) => {
      const known = state.messages.get(message);
      const open = known && (() => choose({ message: known }));
      return { key: String(n), cells: [text, new Date(t).toLocaleTimeString()], open };
    }),
  );
}
