// Shows a play beside the picture: the explanations, terminals and checks of a tutorial or drill. What happens in a
// play arrives as records, like the broker's events, so the terminals and the picture always show the same moment.
// Names, commands and their output are only ever set as text, never as HTML.

/** Lines kept of each terminal. */
const KEPT_PRINTED = 200;
/**
 * Milliseconds for which a scene that is shown again, or a recording, continues after its end, so that messages arrive.
 */
const SETTLES = 4000;
/** In a recording, the minimum time to show an explanation, and the time to read one character, in milliseconds. */
const SHORTEST = 2500;
const PER_CHARACTER = 50;

/** Make a handler that changes the state of the play. A new `rev` means that the play must be drawn again. */
function playing(change) {
  return (state, record) => {
    if (!state.play) return;
    state.play.rev += 1;
    change(state.play, record, state);
  };
}

/** The terminal of a record. `runs` is the time when its program was started, or null if no program runs. */
const terminalOf = (play, record) => play.terminals.find((each) => each.name === record.terminal);

function printLine(play, record, isCommand) {
  const terminal = terminalOf(play, record);
  if (!terminal) return; // the program belongs to an earlier scene, but still prints
  terminal.rev += 1;
  terminal.lines.push({ text: record.line, isCommand });
  if (terminal.lines.length > KEPT_PRINTED) terminal.lines.shift();
}

/** Handlers of the records of plays, by kind. They change the state, like HANDLERS in model.js. */
export const PLAY_KINDS = {
  begins(state, record) {
    // The play may run on another broker: forget all nodes and messages.
    for (const part of Object.values(state)) if (part instanceof Map) part.clear();
    const { n: id, name, title, story, own } = record;
    const play = {
      id,
      rev: 1,
      name,
      title,
      story,
      /** The names of the play's queues and exchanges, if its broker also has others. */
      own,
      scene: 0,
      /** When the commands of the scene began. */
      goesOn: Infinity,
      text: "",
      terminals: [],
      checks: [],
      charts: [],
      counts: [],
    };
    Object.assign(state, {
      motions: [],
      due: [],
      sentences: [],
      lastDead: null,
      topology: null,
      rests: Infinity,
      play,
    });
  },
  scene: playing((play, record) =>
    Object.assign(play, { scene: record.number, text: record.text, question: record.question, waits: record.waits }),
  ),
  opened: playing((play, record, state) => {
    const isEarlier = ({ terminal, kind }) => terminal !== undefined || kind === "measured";
    state.due = state.due.filter((each) => !isEarlier(each.record));
    play.terminals = record.names.map((name) => ({ name, rev: 0, lines: [], runs: null }));
    play.charts = [];
  }),
  typed: playing((play, record) => {
    printLine(play, record, true);
    Object.assign(terminalOf(play, record) ?? {}, { runs: record.t });
  }),
  finished: playing((play, record, state) => {
    Object.assign(terminalOf(play, record) ?? {}, { runs: null });
    const publisher = state.publishers.get(`p:${record.terminal}`);
    if (publisher) publisher.gone = Math.max(publisher.gone, record.t);
  }),
  printed: playing((play, record) => printLine(play, record, false)),
  checked: playing((play, { what, ok, scene }) => play.checks.push({ what, ok, scene: scene ?? play.scene })),
  answered: playing((play, { text, scene }) => play.checks.push({ answer: text, scene: scene ?? play.scene })),
  counts: playing((play, record) => (play.counts = record.rows)),
  measured: playing((play, record) => {
    play.charts = record.charts.map((each, index) => {
      const before = each.first && play.charts[index] ? play.charts[index].values.slice(0, each.first) : [];
      return { title: each.title, unit: each.unit, values: [...before, ...each.values] };
    });
  }),
  ends: playing((play, record) => (play.ended = record.text)),
  failed: playing((play, record) => (play.failed = record.text)),
  again: playing((play) => (play.isAgain = true)),
  goes_on: playing((play, record) => Object.assign(play, { isAgain: false, goesOn: record.t })),
  gone(state) {
    state.about = { ...state.about, note: "The broker does not answer." };
  },
};

function built(tag, text = undefined, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function buttonFor(text, title, act) {
  const button = built("button", text, { type: "button", title });
  button.addEventListener("click", act);
  return button;
}

/** The part of the page that shows a play. */
export class Play {
  /**
   * @param {import("./player.js").Player} player
   * @param {(path: string, body: object) => AsyncIterable<object>} post
   * @param {() => void} act  opens the form with which readers run commands of their choice
   */
  constructor(player, post, act) {
    this.player = player;
    this.post = post;
    this.letAct = act;
    /** Whether the reader can run commands of their choice between scenes. */
    this.canAct = false;
    /** The number of the latest record. After a lost connection, earlier records come again, and are ignored. */
    this.latest = -1;
    /** The plays so far, with their scenes: when each was explained (`said`), and when its commands began (`from`). */
    this.acts = [];
    /** The scene that is shown again, with the times of its beginning and end. */
    this.again = null;
    this.plays = [];
    /** What the reader can choose now, if anything. */
    this.choosing = null;
    this.isMenuOpen = false;
    this.since = 0;
    this.drawn = "";
    this.drawnPlay = null;
    this.isRecorded = document.getElementById("recording") !== null;
    this.asked = "";
    /** In a recording, the scene whose explanation is being read, and until when. */
    this.reading = null;
    this.readUntil = 0;
  }

  /** The play that is shown: the latest one or, in a recording, the latest one that has begun by the current moment. */
  get act() {
    const began = this.isRecorded ? this.acts.filter((act) => act.from <= this.player.now) : this.acts;
    return began[began.length - 1] || { id: null, scenes: [] };
  }

  get scenes() {
    return this.act.scenes;
  }

  /** What the reader can choose now, if anything. At the end of a play in a recording, this is the next play. */
  get offered() {
    const { acts, act, player } = this;
    if (!this.isRecorded) return this.choosing;
    if (player.now < player.end) return null;
    const next = acts[acts.indexOf(act) + 1];
    return { proposed: next ? next.name : null, pace: null };
  }

  get isOn() {
    return this.parts !== undefined;
  }

  /** Take a record that belongs to a play; returns false for any other record. */
  takes(record) {
    if (record.n === undefined) return false;
    if (record.n <= this.latest && !this.isRecorded) return true;
    this.latest = record.n;
    if (record.kind === "session") this.open(record);
    this.player.add(record);
    this.note(record);
    return true;
  }

  note(record) {
    const act = this.acts[this.acts.length - 1];
    const scene = act && act.scenes[act.scenes.length - 1];
    if (record.kind === "begins") {
      if (act) act.to = record.t - 1;
      this.acts.push({ id: record.n, name: record.name, from: record.t, to: null, scenes: [] });
      Object.assign(this, { again: null, choosing: null, isMenuOpen: false });
      this.player.live();
    } else if (record.kind === "scene") {
      const { number, text, question, waits, pace, t } = record;
      act.scenes.push({ number, text, question, waits, pace, said: t, from: null });
      this.since = performance.now();
    } else if (record.kind === "goes_on" && scene) {
      scene.from = record.t;
    } else if (record.kind === "choose") {
      this.choosing = { proposed: record.proposed, pace: record.pace };
      this.since = performance.now();
      this.menuIsNew = true;
    }
  }

  // What the reader does

  async ask(what) {
    const text = JSON.stringify(what);
    if (this.asked === text) return; // it has not been answered yet
    this.asked = text;
    try {
      for await (const _ of this.post("play", what));
    } finally {
      this.asked = "";
    }
  }

  /** The index of the scene that is shown; -1 if no scene of the current play is shown. */
  get shown() {
    const { again, player } = this;
    const { play } = player.state;
    if (again && again.from <= player.now && player.now <= again.to) return again.index;
    return play && play.id === this.act.id ? play.scene - 1 : -1;
  }

  next() {
    const at = this.shown;
    const { offered } = this;
    if (this.isRecorded && at >= 0 && this.player.now < this.scenes[at].from) {
      this.player.seek(this.scenes[at].from);
      this.player.play();
    } else if (at < this.scenes.length - 1) {
      this.show(at + 1);
    } else if (!this.player.isLive && !this.isRecorded) {
      this.again = null;
      this.player.live();
    } else if (offered) {
      if (offered.proposed) this.choose(offered.proposed);
    } else if (this.isRecorded) {
      this.player.seek(this.player.end);
    } else if (this.scenes.length && this.scenes[at].from === null) {
      this.ask({ do: "next", scene: this.scenes[at].number });
    }
  }

  back() {
    if (this.shown > 0) this.show(this.shown - 1);
  }

  choose(name) {
    this.isMenuOpen = false;
    if (!this.isRecorded) this.ask({ do: "choose", name });
    else if (location.hash === `#${name}`) this.showRecorded();
    else location.hash = name; // the event hashchange then shows it
  }

  /** In a recording, show the only play, or the play and scene that the address names, as in #work-queues/2. */
  showRecorded() {
    const { acts, player } = this;
    const [name, number] = decodeURIComponent(location.hash.slice(1)).split("/");
    const act = acts.length === 1 ? acts[0] : acts.find((each) => each.name === name);
    player.part = act ? { from: act.from, to: act.to } : { from: player.first, to: player.first };
    Object.assign(this, { reading: null, isMenuOpen: false, menuIsNew: !act });
    // Before the first scene, there is nothing to see.
    const scene = act?.scenes[Number(number || 1) - 1];
    player.seek(scene ? scene.said : player.part.from);
    player.play();
    this.drawChapters(act?.scenes ?? []);
  }

  /** Mark the scenes on the time bar. */
  drawChapters(scenes) {
    const { start, end } = this.player;
    const marks = scenes.map((scene, index) => {
      const mark = buttonFor("", `Scene ${scene.number}: ${scene.text}`, () => this.show(index));
      mark.setAttribute("aria-label", `Scene ${scene.number}`);
      mark.style.setProperty("left", `${((100 * (scene.said - start)) / (end - start)).toFixed(2)}%`);
      return mark;
    });
    document.getElementById("chapters").replaceChildren(...marks);
  }

  /** Begin to show a recording, of which all records have been read. Its last message arrives at `settled`. */
  openRecording(settled) {
    const { player } = this;
    const end = Math.max(player.last + SETTLES, settled);
    if (!this.isOn || !this.acts.length) {
      // Without plays, all of the recording is shown, until the end of its last motions.
      player.part = { from: player.first, to: end };
      return;
    }
    this.acts[this.acts.length - 1].to = end;
    // If a play was begun several times, only its last run is shown.
    this.acts = this.acts
      .filter((act) => act.to !== null)
      .filter((act, index, all) => !all.slice(index + 1).some((later) => later.name === act.name));
    this.plays = this.plays.filter((each) => this.acts.some((act) => act.name === each.name));
    if (this.plays.length < 2) this.plays = [];
    this.fillMenu();
    addEventListener("hashchange", () => this.showRecorded());
    this.showRecorded();
  }

  /** Show a scene again: from its first command until its messages have arrived or, in a recording, from its text. */
  show(index) {
    const { player, scenes } = this;
    const scene = scenes[index];
    const following = scenes[index + 1];
    if (this.isRecorded) {
      this.reading = null;
      player.seek(scene.said);
      player.play();
      return;
    }
    if (!following) {
      this.again = null;
      player.live();
      return;
    }
    const from = scene.from === null ? scene.said : scene.from;
    const settled = following.said + SETTLES;
    const to = following.from !== null ? Math.min(settled, following.from - 1) : settled;
    this.again = { index, from, to };
    player.seek(from);
    player.play();
    player.until = to;
  }

  toggleMenu() {
    this.isMenuOpen = !this.isMenuOpen;
    this.menuIsNew = this.isMenuOpen;
  }

  /** Handle a key; returns false for any other key. */
  keydown(event) {
    if (!this.isOn) return false;
    if (event.target instanceof HTMLInputElement) return false; // the arrow keys move the time bar
    const keys = { n: this.next, ArrowRight: this.next, b: this.back, ArrowLeft: this.back };
    if (this.plays.length) keys.m = this.toggleMenu;
    if (event.target === document.body) keys.Enter = this.next;
    if (!(event.key in keys)) return false;
    keys[event.key].call(this);
    return true;
  }

  // What the page shows

  open(record) {
    this.plays = record.plays;
    this.player.keepsAll = true;
    const main = document.querySelector("main");
    const part = (tag, attributes) => built(tag, undefined, attributes);
    const story = part("section", { id: "story", "aria-label": "Explanation" });
    this.parts = {
      story,
      title: part("h2", { id: "play-title" }),
      summary: part("p", { id: "summary" }),
      scene: part("p", { id: "scene" }),
      words: part("div", { id: "words" }),
      text: part("p", { id: "narration", role: "status" }),
      question: part("p", { id: "question", role: "status" }),
      checks: part("ul", { id: "checks", "aria-label": "Checks" }),
      counts: part("table", { id: "counts" }),
      buttons: part("div", { id: "buttons" }),
      menu: part("ol", { id: "plays", "aria-label": "Tutorials" }),
      terminals: part("section", { id: "terminals", "aria-label": "Terminals" }),
      charts: part("section", { id: "charts", "aria-label": "Measurements" }),
    };
    const { title, summary, scene, words, text, question, checks, counts } = this.parts;
    const { buttons, menu, terminals, charts } = this.parts;
    this.parts.back = buttonFor("Previous scene", "Show the previous scene again (b, or the left arrow)", () =>
      this.back(),
    );
    this.parts.next = buttonFor("Next", "Continue (n, the right arrow, or Enter)", () => this.next());
    this.parts.other = buttonFor("Tutorials", "Choose another tutorial (m)", () => this.toggleMenu());
    this.parts.back.id = "earlier";
    this.parts.next.id = "next";
    this.parts.other.id = "other";
    this.parts.act = buttonFor("Try it yourself", "Publish, bind, or start a worker (d)", () => this.letAct());
    this.parts.act.id = "try";
    buttons.append(this.parts.back, this.parts.next, this.parts.act);
    if (this.plays.length) buttons.append(this.parts.other);
    words.append(text, question);
    story.append(title, scene, words, buttons, checks, counts, menu, summary);
    main.prepend(story);
    document.getElementById("view").after(terminals, charts);
    document.body.classList.add("playing");
    this.fillMenu();
  }

  fillMenu() {
    const items = this.plays.map(({ name, title, story }) => {
      const item = built("li");
      const choice = buttonFor(title, name, () => this.choose(name));
      choice.dataset.name = name;
      item.append(choice, built("span", story));
      return item;
    });
    this.parts.menu.replaceChildren(...items);
    this.parts.other.hidden = !items.length;
  }

  /** In a recording, wait until an explanation can have been read; then skip the rest of the recorded reading time. */
  read(scene, mine) {
    const { player } = this;
    if (player.isPaused) return;
    if (scene !== this.reading) {
      this.reading = scene;
      this.readUntil =
        mine + (scene ? Math.max(SHORTEST, (scene.text + (scene.question ?? "")).length * PER_CHARACTER) : 0);
    }
    const isBefore = scene !== undefined && scene.waits && scene.from !== null && player.now < scene.from;
    player.hold = isBefore && mine < this.readUntil ? scene.from - 1 : Infinity;
    if (isBefore && mine >= this.readUntil) player.seek(scene.from);
  }

  /** Draw what has changed. With `--auto`, continue when there has been enough time to read. */
  draw(mine) {
    if (!this.isOn) return;
    const { player } = this;
    const at = this.shown;
    if (this.isRecorded) this.read(this.scenes[at], mine);
    const { play } = player.state;
    const { offered } = this;
    const isCurrent = this.act.id === (play && play.id);
    const isLatest = isCurrent && at === this.scenes.length - 1 && (player.isLive || this.isRecorded);
    const waits = isLatest && at >= 0 && this.scenes[at].waits && this.scenes[at].from === null;
    const isChoosing = isLatest && offered !== null;
    const pace = isChoosing ? offered.pace : waits ? this.scenes[at].pace : null;
    if (pace && mine - this.since > pace && !player.isPaused) this.next();
    const drawn = [
      play && play.rev,
      play && play.id,
      at,
      isLatest,
      waits,
      isChoosing,
      this.isMenuOpen,
      this.scenes.length,
      this.canAct,
    ].join();
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    if (play && play.id !== this.drawnPlay) this.scrollUp(play.id);
    this.drawStory(play, at, { isLatest, waits, isChoosing });
    this.drawTerminals(play ? play.terminals : []);
    this.drawCharts(play ? play.charts : []);
  }

  /** When another play begins, scroll to the top of the page. */
  scrollUp(id) {
    this.drawnPlay = id;
    this.parts.story.scrollTop = 0;
    document.querySelector("main").scrollTop = 0;
  }

  drawStory(play, at, { isLatest, waits, isChoosing }) {
    const { parts, player } = this;
    const set = (part, text) => {
      part.hidden = !text;
      if (part.textContent !== text) part.textContent = text;
    };
    const scene = this.scenes[at];
    const isShownAgain = scene && !isLatest && !this.isRecorded && !player.isLive;
    set(parts.title, play ? play.title : "Choose a tutorial");
    set(parts.summary, play ? play.story : "");
    set(
      parts.scene,
      scene ? `Scene ${scene.number}${isShownAgain ? `, again (${this.scenes.length} so far)` : ""}` : "",
    );
    const end = isLatest && play ? play.failed || play.ended : "";
    set(parts.text, end || (scene ? scene.text : play ? play.text : ""));
    set(parts.question, !end && scene?.question ? `What will happen? ${scene.question}` : "");
    parts.text.classList.toggle("failed", Boolean(end && play.failed));
    set(parts.checks, "");
    const checks = play?.checks ?? [];
    parts.checks.hidden = !checks.length;
    for (const { what, ok, answer, scene: of } of checks) {
      const item = answer !== undefined ? built("li", `Answer: ${answer}`) : built("li", `${ok ? "✓" : "✗"} ${what}`);
      item.className = answer !== undefined ? "answer" : ok ? "passed" : "failed";
      item.classList.toggle("earlier", of < play.scene);
      item.classList.toggle("long-ago", of < play.scene - 1);
      parts.checks.append(item);
    }
    parts.checks.scrollTop = parts.checks.scrollHeight;
    set(parts.counts, "");
    const counts = play && isLatest ? play.counts : [];
    parts.counts.hidden = !counts.length;
    if (counts.length) parts.counts.append(built("caption", "Totals"));
    for (const [name, value] of counts) {
      const row = built("tr", undefined, { class: name === "lost" ? "lost" : "" });
      row.append(built("th", name, { scope: "row" }), built("td", value));
      parts.counts.append(row);
    }
    parts.back.disabled = at <= 0;
    const proposed = isChoosing && this.offered.proposed;
    const title = proposed && this.plays.find((each) => each.name === proposed).title;
    parts.next.textContent = proposed ? `${play ? "Next" : "Start"}: ${title}` : "Next";
    const isOver = this.isRecorded ? isChoosing : (isLatest || at < 0) && !waits;
    parts.next.disabled = (isOver && !proposed) || play?.isAgain === true;
    if (play?.isAgain) parts.next.textContent = "Undoing what you did…";
    const mayAct = this.canAct && isLatest && play !== null && !play.isAgain && !play.failed;
    parts.act.hidden = !(mayAct && (waits || isChoosing));
    const isMenu = isChoosing || this.isMenuOpen;
    const isNew = parts.menu.hidden === isMenu;
    document.body.classList.toggle("choosing", play === null);
    parts.menu.hidden = !isMenu || !this.plays.length;
    parts.other.setAttribute("aria-expanded", String(isMenu));
    if (isNew) this.showLatestLines();
    if (isMenu && this.menuIsNew) {
      this.menuIsNew = false;
      const first = proposed ? parts.next : parts.menu.querySelector("button");
      if (first) first.focus();
    }
  }

  drawTerminals(terminals) {
    const parent = this.parts.terminals;
    const names = JSON.stringify(terminals.map((each) => each.name));
    if (parent.dataset.names !== names) {
      parent.dataset.names = names;
      parent.replaceChildren(
        ...terminals.map(({ name }) => {
          const made = built("section", undefined, { class: "terminal" });
          made.append(
            built("h3", name),
            built("pre", undefined, { tabindex: "0", role: "region", "aria-label": `Terminal ${name}` }),
          );
          return made;
        }),
      );
    }
    terminals.forEach(({ lines, rev }, index) => {
      const shown = parent.children[index].querySelector("pre");
      if (shown.dataset.rev === String(rev)) return;
      shown.dataset.rev = String(rev);
      shown.replaceChildren(
        ...lines.map(({ text, isCommand }) =>
          built("span", `${isCommand ? "$ " : ""}${text}\n`, isCommand ? { class: "command" } : {}),
        ),
      );
      shown.scrollTop = shown.scrollHeight;
    });
  }

  drawCharts(charts) {
    const said = (value) => value.toLocaleString("en", { maximumFractionDigits: value >= 10 ? 0 : 1 });
    const { namespaceURI } = document.getElementById("picture");
    const isNew = charts.length !== this.parts.charts.childElementCount;
    this.parts.charts.replaceChildren(
      ...charts.map(({ title, unit, values }) => {
        const most = Math.max(0, ...values);
        const latest = values.length ? values[values.length - 1] : 0;
        const figure = built("figure");
        const words = `${title}: ${said(latest)} ${unit}`.trim();
        figure.append(built("figcaption", `${words} (at most ${said(most)})`));
        const svg = document.createElementNS(namespaceURI, "svg");
        svg.setAttribute("viewBox", "0 0 300 60");
        svg.setAttribute("preserveAspectRatio", "none");
        svg.setAttribute("aria-hidden", "true");
        const width = 300 / Math.max(50, values.length);
        const steps = values.map(
          (value, index) => `V${60 - (value / (most || 1)) * 58}H${((index + 1) * width).toFixed(1)}`,
        );
        svg.appendChild(document.createElementNS(namespaceURI, "path")).setAttribute("d", `M0 60${steps.join("")}V60Z`);
        figure.append(svg);
        return figure;
      }),
    );
    if (isNew) this.showLatestLines();
  }

  /** Scroll the terminals to their latest lines, after charts or the list of tutorials have made them less tall. */
  showLatestLines() {
    for (const pre of this.parts.terminals.querySelectorAll("pre")) pre.scrollTop = pre.scrollHeight;
  }
}
