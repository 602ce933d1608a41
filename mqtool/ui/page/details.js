// The panel with the facts about a node or a message, and the tables with the same facts as the picture. Names, headers
// and bodies come from strangers: they are only ever set as text.

import { describe } from "./picture.js";

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

const hasAny = (value) => value && Object.keys(value).length > 0;

function ofMessage(state, message) {
  const { details } = message;
  const there = message.key === undefined ? undefined : state.copies.get(message.key);
  const pairs = [
    ["exchange", details.exchange || "(default exchange)"],
    ["routing key", details.routing_key],
    ["state", there ? there.fate : message.fate],
  ];
  if (hasAny(details.properties)) pairs.push(["properties", details.properties]);
  if (hasAny(details.headers)) pairs.push(["headers", details.headers]);
  const body = details.body === undefined ? `Base64: ${details.body_base64}` : details.body;
  pairs.push([`body, ${details.size.toLocaleString("en")} ${details.size === 1 ? "byte" : "bytes"}`, body]);
  if (there && there.history.length) pairs.push(["so far", there.history.join("\n")]);
  return { title: "Message", pairs };
}

function ofNode(state, id) {
  const { role, name, line } = describe(state, id);
  const pairs = [
    ["name", name],
    ["now", line],
  ];
  const links = [...state.links.values()];
  const named = (other) => other.slice(2) || "(default exchange)";
  const keys = (link) => (link.keys.length ? ` (${link.keys.join(", ")})` : "");
  if (id[0] === "x") {
    const exchange = state.exchanges.get(id);
    if (exchange.alternate) pairs.push(["alternate exchange", exchange.alternate]);
    const bound = links.filter((link) => link.from === id).map((link) => named(link.to) + keys(link));
    pairs.push(["bindings", bound.join("\n") || "none"]);
  } else if (id[0] === "q") {
    const queue = state.queues.get(id);
    const bound = links.filter((link) => link.to === id).map((link) => named(link.from) + keys(link));
    pairs.push(["bound to", bound.join("\n") || "only the default exchange"]);
    if (hasAny(queue.arguments)) pairs.push(["arguments and policy", queue.arguments]);
    const consumers = [...state.consumers.values()].filter((each) => each.queue === id && !each.gone);
    pairs.push([
      "consumers",
      consumers.map((each) => `${each.label}, prefetch ${each.prefetch || "unlimited"}`).join("\n") || "none",
    ]);
  } else if (id[0] === "c") {
    pairs.push(["queue", state.consumers.get(id).queue.slice(2)], ["connection", state.consumers.get(id).name || ""]);
  }
  return { title: role[0].toUpperCase() + role.slice(1), pairs };
}

/** Fill the panel. */
export function details(parent, state, chosen) {
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
      : ofNode(state, chosen.node);
  const text = JSON.stringify([title, pairs]);
  if (parent.dataset.shown === text) return; // keeps what somebody has selected in it
  parent.dataset.shown = text;
  const heading = document.createElement("h2");
  heading.textContent = title;
  parent.replaceChildren(heading);
  facts(parent, pairs);
}

function fill(body, rows) {
  const text = JSON.stringify(rows);
  if (body.dataset.shown === text) return;
  body.dataset.shown = text;
  body.replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach((cell, index) => {
        const made = document.createElement(index ? "td" : "th");
        if (!index) made.scope = "row";
        made.textContent = String(cell);
        row.append(made);
      });
      return row;
    }),
  );
}

/** Fill the tables and the list of events. */
export function fillTables(parent, state) {
  if (parent.hidden) return;
  const of = (nodes, cells) => [...nodes.values()].map(cells);
  const consumersOf = (id) => [...state.consumers.values()].filter((each) => each.queue === id && !each.gone).length;
  fill(
    parent.querySelector("#queues tbody"),
    of(state.queues, (each) => [each.name, each.type, each.ready, each.unacked, consumersOf(each.id)]),
  );
  fill(
    parent.querySelector("#exchanges tbody"),
    of(state.exchanges, (each) => [
      each.name || "(default exchange)",
      each.type,
      [...state.links.values()]
        .filter((link) => link.from === each.id)
        .map((link) => link.to.slice(2))
        .join(", "),
    ]),
  );
  const said = state.sentences.slice(-50).reverse();
  fill(
    parent.querySelector("#happened tbody"),
    said.map((each) => [new Date(each.t).toLocaleTimeString(), each.text]),
  );
}
