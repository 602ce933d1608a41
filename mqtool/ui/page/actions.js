// What users can do from the page: forms, the mqtool command that each form runs, and the output of the commands.

import { describe } from "./picture.js";

const KEPT_LINES = 300;
const KEPT_RUNS = 8;

/** @type {(id: string) => any} */
export const byId = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Post a request, and yield the records of the response. */
export async function* post(path, body, signal) {
  const headers = { Authorization: `Bearer ${location.hash.slice(1)}`, "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal, cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  yield* recordsOf(answer);
}

/** Yield the records of a response: one JSON object per line. */
export async function* recordsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function copyButton(text) {
  const button = make("button", { type: "button", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

/** Run an action, and show its command and output in `parent`, above those of earlier actions. */
export async function perform(action, fields, parent) {
  const stopping = new AbortController();
  const command = make("code");
  const output = make("pre", { tabIndex: 0 });
  const state = make("span", { className: "ended" });
  const stop = make("button", { type: "button", textContent: "Stop" });
  stop.addEventListener("click", () => stopping.abort());
  const run = make(
    "article",
    { className: "run" },
    command,
    " ",
    copyButton(() => command.textContent),
    " ",
    stop,
    " ",
    state,
    output,
  );
  run.dataset.action = action;
  parent.prepend(run);
  for (const old of [...parent.children].slice(KEPT_RUNS)) if (old.querySelector("button[hidden]")) old.remove();
  const lines = [];
  try {
    for await (const record of post("run", { action, fields }, stopping.signal)) {
      if (record.command !== undefined) command.textContent = record.command;
      if (record.line !== undefined) lines.push(record.line);
      if (record.error !== undefined) lines.push(record.error, record.hint);
      if (record.code) state.textContent = `exit code ${record.code}`;
      if (lines.length > KEPT_LINES) lines.splice(0, lines.length - KEPT_LINES);
      output.textContent = lines.join("\n");
      output.scrollTop = output.scrollHeight;
    }
    if (!state.textContent) state.textContent = "done";
  } catch (error) {
    state.textContent = stopping.signal.aborted ? "stopped" : error.message;
  }
  stop.hidden = true;
}

/** The form for the actions that are possible on this broker. */
export class Doing {
  constructor(state) {
    this.state = state;
    /** @type {Map<string, any>} */
    this.actions = new Map();
    /** @type {Map<string, string>} what the user has typed, kept from one action to the next */
    this.typed = new Map();
    this.previews = 0;
    byId("action").addEventListener("change", () => this.show());
    byId("fields").addEventListener("input", () => this.preview());
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      perform(byId("action").value, this.values(), byId("runs"));
    });
    byId("copy").replaceWith(copyButton(() => byId("command").textContent));
  }

  /** Request the list of possible actions, and fill the form. */
  async load() {
    for await (const each of post("actions", {})) this.actions.set(each.name, each);
    const options = [...this.actions.values()].map((each) =>
      make("option", { value: each.name, textContent: each.label }),
    );
    byId("action").replaceChildren(...options);
    byId("do").hidden = !this.actions.size;
    const canChange = [...this.actions.values()].some((each) => each.changes);
    byId("readonly").hidden = canChange;
    this.show();
  }

  /** Open the form for an action, with some of its fields filled in. */
  open(action, fields = {}) {
    if (!this.actions.has(action)) return;
    this.typed.delete("publisher"); // the one of another box
    for (const [name, value] of Object.entries(fields)) this.typed.set(name, value);
    byId("details").hidden = true; // the panel could cover the form
    byId("doing").hidden = false;
    byId("do").setAttribute("aria-expanded", "true");
    byId("action").value = action;
    this.show();
    byId("run").focus();
  }

  show() {
    const action = this.actions.get(byId("action").value);
    if (!action) return;
    byId("fields").replaceChildren(
      ...action.fields.map((field) => make("label", {}, `${field.label} `, this.input(field))),
    );
    byId("price").textContent = action.note;
    this.preview();
  }

  input(field) {
    const value = this.typed.get(field.name) ?? field.value;
    if (field.kind === "choice") {
      const options = field.choices.map((each) =>
        make("option", { value: each, textContent: each, selected: each === value }),
      );
      return make("select", { name: field.name }, ...options);
    }
    if (field.kind === "lines") return make("textarea", { name: field.name, value, rows: 2 });
    const input = make("input", { name: field.name, value, autocomplete: "off" });
    if (field.kind !== "text") input.setAttribute("list", `${field.kind}-names`);
    return input;
  }

  values() {
    return Object.fromEntries(
      [...byId("fields").querySelectorAll("[name]")].map((/** @type {any} */ each) => [each.name, each.value]),
    );
  }

  /** Show the command that the form would run. */
  async preview() {
    const fields = this.values();
    for (const [name, value] of Object.entries(fields)) this.typed.set(name, value);
    const number = ++this.previews;
    for await (const record of post("preview", { action: byId("action").value, fields })) {
      if (number === this.previews) byId("command").textContent = record.command || record.error;
    }
  }

  /** Suggest the names of exchanges, queues and publishers in the picture. */
  suggest(state) {
    if (byId("doing").hidden) return;
    for (const [kind, nodes] of [
      ["exchange", state.exchanges],
      ["queue", state.queues],
      ["client", state.publishers],
    ]) {
      const list = byId(`${kind}-names`);
      const names = [...nodes.values()].map((each) => each.name).filter(Boolean);
      if (list.dataset.names === JSON.stringify(names)) continue;
      list.dataset.names = JSON.stringify(names);
      list.replaceChildren(...names.map((value) => make("option", { value })));
    }
  }

  /** Fill the details panel with buttons: what can be asked about a node or message, or done with it. */
  asks(chosen, state, moment) {
    const button = (text, act) => {
      const made = make("button", { type: "button", textContent: text });
      made.addEventListener("click", act);
      return made;
    };
    const parent = byId("asks");
    byId("answer").replaceChildren();
    if (!this.actions.size) return parent.replaceChildren();
    if (chosen.message) {
      const { details } = chosen.message;
      const headers = Object.entries(details.headers).map(([name, value]) => headerLine(name, value));
      const fields = { exchange: details.exchange, key: details.routing_key, headers: headers.join("\n") };
      return parent.replaceChildren(button("Why here?", () => perform("route", fields, byId("answer"))));
    }
    const { role } = describe(state, moment, chosen.node);
    const name = chosen.node.slice(2);
    if (chosen.node.startsWith("x:")) {
      const key =
        [...state.messages.values()].reverse().find((each) => each.details.exchange === name)?.details.routing_key ??
        "";
      const asked = [button("Explain a route…", () => this.open("route", { exchange: name, key, headers: "" }))];
      if (this.actions.has("publish"))
        asked.push(button("Publish…", () => this.open("publish", { exchange: name, key })));
      return parent.replaceChildren(...asked);
    }
    if (chosen.node.startsWith("q:")) {
      const price = make("p", {
        className: "price",
        textContent: role === "stream" ? "" : this.actions.get("peek").note,
      });
      const peek = button("Peek: what waits here?", () =>
        perform("peek", { queue: name, count: "10" }, byId("answer")),
      );
      const asked = [peek];
      if (this.actions.has("consume"))
        asked.push(button("Consume slowly…", () => this.open("consume", { queue: name })));
      return parent.replaceChildren(...asked, price);
    }
    const asked = [];
    const client = state.publishers.get(chosen.node)?.name ?? state.consumers.get(chosen.node)?.label;
    const [target] = state.publishers.get(chosen.node)?.targets.keys() ?? [];
    if (this.actions.has("publish") && target?.startsWith("x:")) {
      const fields = { exchange: target.slice(2), publisher: client };
      asked.push(button("Publish…", () => this.open("publish", fields)));
    }
    if (this.actions.has("cut") && client !== undefined)
      asked.push(button("Cut the connection…", () => this.open("cut", { client })));
    if (asked.length) return parent.replaceChildren(...asked);
    return parent.replaceChildren();
  }
}

/** A header in the format of mqtool's option -H. */
function headerLine(name, value) {
  const isLine = typeof value === "string" && !value.includes("\n");
  return isLine ? `${name}=${value}` : `${name}:=${JSON.stringify(value)}`;
}
