// The page: reads the broker's events, and handles keys, buttons and clicks.

import { byId, Doing, post, recordsOf } from "./actions.js";
import { details, fillTables } from "./details.js";
import { FATES } from "./fates.js";
import { inOrder, withoutEndings, withPauses } from "./model.js";
import { Picture, SVG } from "./picture.js";
import { Play } from "./play.js";
import { Player } from "./player.js";
import { visible } from "./sentences.js";

const SPEEDS = [0.1, 0.25, 0.5, 1];
/** The factor by which one step of the zoom makes the picture larger. */
const STEP = 1.25;

const player = new Player();
const picture = new Picture(byId("picture"), choose);
const play = new Play(player, post, act);
/** The records, if this page is a recording. */
const recorded = byId("recording");
/** What the panel shows, and the element that had the focus before it. */
let chosen = null;
let opener = null;
/** The form for commands; a recording has no actions for it. */
const doing = new Doing();

function choose(what) {
  if (!byId("details").contains(document.activeElement)) opener = document.activeElement;
  chosen = what;
  byId("details").hidden = false;
  doing.asks(what, player.state, picture.moment);
  details(byId("facts"), player.state, picture.shown, picture.moment, what);
  byId("close").focus();
}

/** Open the form for the reader of a play, to publish a message like the latest one; or close it. */
function act() {
  if (!byId("doing").hidden) return toggle("do", "doing");
  const latest = [...player.state.messages.values()].pop()?.details;
  doing.open("publish", latest ? { exchange: latest.exchange, key: latest.routing_key } : {});
}

function closeDetails() {
  const node = chosen && chosen.node;
  chosen = null;
  byId("details").hidden = true;
  const drawn = node && picture.drawnNodes.get(node);
  if (drawn) drawn.group.focus();
  else if (opener?.isConnected) opener.focus();
  opener = null;
}

// Reading records

function take(record) {
  if (record.kind === "problem") {
    byId("state").textContent = record.text;
    return;
  }
  if (record.kind === "now") {
    byId("state").textContent = "";
    player.reported(record.t, performance.now());
    return;
  }
  if (!play.takes(record)) player.add(record);
}

async function read() {
  const secret = location.hash.slice(1);
  for (;;) {
    try {
      const answer = await fetch("events", { headers: { Authorization: `Bearer ${secret}` }, cache: "no-store" });
      if (answer.status === 401) {
        byId("state").textContent = "The secret is missing from this address: open the address that mqtool ui printed.";
        return;
      }
      if (!answer.ok) throw new Error(await answer.text());
      for await (const record of recordsOf(answer)) take(record);
      byId("state").textContent = "mqtool ui has ended.";
    } catch (error) {
      byId("state").textContent = `mqtool ui does not answer: ${error.message}`;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// Controls

const ACTIONS = {
  pause: () => (player.isPaused ? player.play() : player.pause()),
  step: () => player.step(),
  back: () => player.back(),
  slower: () => changeSpeed(-1),
  faster: () => changeSpeed(1),
  live: () => player.live(),
  table: () => toggle("table", "tables"),
  do: () => toggle("do", "doing"),
  save: () => save(),
  closer: () => picture.zoom.by(STEP),
  farther: () => picture.zoom.by(1 / STEP),
  fit: () => picture.zoom.fit(),
  fold: () => picture.view.toggleAll(),
  others: () => (picture.view.isEverything = !picture.view.isEverything),
};
const KEYS = {
  d: "do",
  s: "save",
  " ": "pause",
  ".": "step",
  ",": "back",
  "-": "slower",
  "+": "faster",
  l: "live",
  t: "table",
  i: "closer",
  o: "farther",
  f: "fit",
  g: "fold",
  a: "others",
};
/** Shift and an arrow key move the picture by this many pixels. */
const PAN = 120;
const PANS = { ArrowLeft: [-PAN, 0], ArrowRight: [PAN, 0], ArrowUp: [0, -PAN], ArrowDown: [0, PAN] };

const isTyping = (element) =>
  element instanceof HTMLInputElement || element instanceof HTMLTextAreaElement || element instanceof HTMLSelectElement;

/** Show or hide what a button controls. */
function toggle(button, controlled) {
  if (byId(button).hidden) return;
  byId(controlled).hidden = !byId(controlled).hidden;
  byId(button).setAttribute("aria-expanded", String(!byId(controlled).hidden));
}

/** Save everything that the page keeps as a file that replays it, like a file of `mqtool ui --record`. */
async function save() {
  if (byId("save").hidden) return;
  const empty = await (await fetch("recording.html", { cache: "no-store" })).text();
  const records = player.recorded().map((each) => JSON.stringify(each).replaceAll("<", "\\u003c"));
  const page = empty.replace("[\n\n]", () => `[\n${records.join(",\n")}\n]`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.download = "mqtool-ui.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function changeSpeed(by) {
  const index = Math.min(SPEEDS.length - 1, Math.max(0, SPEEDS.indexOf(player.speed) + by));
  player.speed = SPEEDS[index];
  if (player.speed < 1) player.isLive = false;
}

for (const [id, act] of Object.entries(ACTIONS)) byId(id).addEventListener("click", act);
byId("close").addEventListener("click", closeDetails);
byId("search").addEventListener("input", (event) => picture.finder.look(event.target.value));
byId("time").addEventListener("input", (event) => {
  player.pause();
  player.seek(player.start + (Number(event.target.value) / 1000) * (player.end - player.start));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    byId("search").value = "";
    picture.finder.look("");
    byId("search").blur();
    closeDetails();
  } else if (isTyping(event.target) || event.ctrlKey || event.altKey || event.metaKey) {
    return;
  } else if (event.shiftKey && event.key in PANS) {
    picture.zoom.pan(...PANS[event.key]);
    event.preventDefault();
  } else if (play.keydown(event)) {
    event.preventDefault();
  } else if (event.key === "/") {
    byId("search").focus();
    event.preventDefault();
  } else if (event.key in KEYS && !(event.key === " " && event.target instanceof HTMLButtonElement)) {
    ACTIONS[KEYS[event.key]]();
    event.preventDefault();
  }
});

// Drawing

let before = performance.now();
let shownAt = 0;
let told = 0;
/** The number of the latest event that was announced to screen readers, and the maximum number to announce at once. */
let heard = 0;
const AT_ONCE = 6;

function frame(mine) {
  // Request the next frame first, so that an error in one frame does not stop the page.
  requestAnimationFrame(frame);
  // In a background tab, frames are seconds apart: do not skip what happened in between.
  player.advance(Math.min(mine - before, 1000), mine);
  before = mine;
  const isReduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!isReduced || mine - shownAt > 1000) {
    shownAt = mine;
    picture.draw(player.state, player.now);
  }
  play.draw(mine);
  if (mine - told > 250) {
    told = mine;
    tell();
  }
}

/** Update what changes less often: the state of the controls, the tables and the details. */
function tell() {
  const { state } = player;
  byId("pause").textContent = player.isPaused ? "Play" : "Pause";
  byId("pause").classList.toggle("paused", player.isPaused);
  byId("live").setAttribute("aria-pressed", String(player.isLive));
  const speed = player.speed === 1 ? "" : `${player.speed}× speed`;
  const length = player.end - player.start;
  const late = player.isLive ? "live" : `${Math.max(0, (player.end - player.now) / 1000).toFixed(1)} s ago`;
  const at = recorded ? `${clock(player.now - player.start)} of ${clock(length)}` : late;
  byId("where").textContent = [player.isPaused ? "paused" : "", speed, at].filter(Boolean).join(", ");
  byId("broker").textContent = state.about.title || "";
  byId("note").textContent = state.about.note || "";
  if (document.activeElement !== byId("time"))
    byId("time").value = String(length > 0 ? ((player.now - player.start) / length) * 1000 : 1000);
  for (const [number, code] of byId("examples").querySelectorAll("code").entries())
    code.textContent = state.about.examples?.[number] ?? code.textContent;
  byId("empty").hidden = state.exchanges.size + state.queues.size > 0 || !state.about.title;
  if (byId("found").textContent !== picture.finder.result) byId("found").textContent = picture.finder.result;
  tellView(picture.view);
  tellLegend();
  announce(state);
  fillTables(byId("tables"), state, picture.shown, picture.moment, choose);
  doing.suggest(state);
  if (chosen) details(byId("facts"), state, picture.shown, picture.moment, chosen);
}

/** Update the buttons that fold and unfold groups, and the one that shows what does not belong to the play. */
function tellView(view) {
  const { others, isEverything, open } = view;
  byId("others").hidden = !others;
  byId("others").textContent = `${isEverything ? "Hide" : "Show"} ${others} ${others === 1 ? "other" : "others"}`;
  byId("others").setAttribute("aria-pressed", String(isEverything));
  byId("fold").hidden = !view.groups.length;
  byId("fold").textContent = open.length ? "Fold all" : "Unfold all";
  const shown = JSON.stringify(open.map(({ id, members }) => [id, members.length]));
  if (byId("unfolded").dataset.shown === shown) return;
  byId("unfolded").dataset.shown = shown;
  byId("unfolded").replaceChildren(
    ...open.map(({ id, label, members }) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Fold ${members.length} ${visible(label)}`;
      button.dataset.group = id;
      button.addEventListener("click", () => picture.foldAgain(id));
      return button;
    }),
  );
}

/** Show the legend of each shape that is in the picture, or was since the page was opened. */
function tellLegend() {
  for (const { dataset } of byId("picture").querySelectorAll("[data-fate]")) legend.get(dataset.fate).hidden = false;
}

/** Announce to screen readers what has happened since the last call. */
function announce(state) {
  const { number, sentences } = state;
  const since = heard;
  heard = number;
  if (number < since) return; // the user has gone back in time
  const lines = sentences.filter((each) => each.n > since && each.told).map((each) => each.told);
  if (!lines.length) return;
  const more = lines.length - AT_ONCE;
  const shown = more > 0 ? [`${more} earlier ${more === 1 ? "event" : "events"}`, ...lines.slice(-AT_ONCE)] : lines;
  byId("told").textContent = shown.join(". ");
}

/** Minutes and seconds. */
function clock(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** @type {Map<string, HTMLElement>} the items of the legend, by fate */
const legend = new Map();

function fillLegend() {
  for (const [name, fate] of Object.entries(FATES)) {
    const item = document.createElement("li");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "-8 -8 16 16");
    svg.setAttribute("class", `dot ${name}`);
    svg.setAttribute("aria-hidden", "true");
    svg.appendChild(document.createElementNS(SVG, "path")).setAttribute("d", fate.shape);
    item.append(svg, fate.means);
    item.hidden = true;
    legend.set(name, item);
    byId("legend").append(item);
  }
}

// In a frame of a documentation page, there is no room for the header, the legend and the like.
if (window.parent !== window) document.body.classList.add("embedded");
fillLegend();
if (recorded) {
  player.isLive = false;
  const records = JSON.parse(recorded.textContent).sort(inOrder);
  const paused = withPauses(withoutEndings(records));
  for (const record of paused.records) take(record);
  player.isLive = false;
  byId("live").hidden = byId("save").hidden = true;
  play.openRecording(paused.end);
} else {
  read();
  doing.load().then(() => (play.canAct = doing.actions.has("publish")));
}
requestAnimationFrame(frame);
