// Keeps the records of the last few minutes (of a play, all records), and provides the state of the picture at any
// moment in that time.

import { advanceTo, apply, beginning, emptyState, HOP, inOrder } from "./model.js";

/** How much is kept: the number of milliseconds, and of records. */
const KEPT = 5 * 60_000;
const KEPT_RECORDS = 60_000;
/** The minimum number of milliseconds between two copies of the state, which are kept to go back in time. */
const KEYFRAME = 10_000;
/** The live picture is this many milliseconds behind the broker, so that the page knows what happens next. */
const BEHIND = 250;

/** The playhead: a moment, how fast it advances, and the records before and after it. */
export class Player {
  constructor() {
    /** @type {any[]} */
    this.records = [];
    /** @type {{t: number, index: number, state: any}[]} */
    this.keyframes = [];
    this.state = emptyState();
    /** The index of the first record that has not been applied. */
    this.applied = 0;
    this.now = 0;
    this.speed = 1;
    this.isPaused = false;
    this.isLive = true;
    /** Whether records are kept however old they are. */
    this.keepsAll = false;
    /** The time at which to pause. */
    this.until = Infinity;
    /** The time at which to wait, because the reader has not yet read the explanation. */
    this.hold = Infinity;
    /** The part of a recording that is shown, as {from, to}; null if this is not a recording. */
    this.part = null;
    /** Whether only step() applies the next event. */
    this.isStepping = false;
    /** The broker's clock minus this page's clock, in milliseconds; null if it is unknown. */
    this.skew = null;
  }

  /** The time at which the shown part begins. */
  get start() {
    return this.part ? this.part.from : this.first;
  }

  /** The time at which the shown part ends. */
  get end() {
    return this.part ? this.part.to : this.last;
  }

  get first() {
    return this.keyframes.length ? this.keyframes[0].t : 0;
  }

  get last() {
    return this.records.length ? this.records[this.records.length - 1].t : 0;
  }

  /** Add a record. Its time is the broker's. */
  add(record) {
    // A record is never earlier than what has been shown, even if the broker's clock is set back.
    const latest = Math.max(this.applied, this.keyframes.at(-1)?.index ?? 0);
    record.t = Math.max(record.t, this.records[latest - 1]?.t ?? 0);
    if (!this.keyframes.length) {
      this.keyframes.push({ t: record.t, index: 0, state: emptyState() });
      this.now = record.t;
    }
    let index = this.records.length;
    while (index > latest && inOrder(this.records[index - 1], record) > 0) index -= 1;
    this.records.splice(index, 0, record);
    // The first picture is shown at once.
    if (this.isLive && record.kind === "topology" && this.state.topology === null) this.now = record.t;
    const isOld = !this.keepsAll && this.first < record.t - KEPT - KEYFRAME;
    if (this.records.length > KEPT_RECORDS || isOld) this.forget();
  }

  /** Note the broker's current time, which it has just reported. */
  reported(time, mine) {
    this.skew = this.skew === null ? time - mine : Math.max(this.skew, time - mine);
  }

  forget() {
    if (this.keyframes.length < 2) return;
    const dropped = this.keyframes[1].index;
    if (dropped > this.applied) return; // the playhead is there
    this.records.splice(0, dropped);
    this.keyframes.shift();
    for (const keyframe of this.keyframes) keyframe.index -= dropped;
    this.applied -= dropped;
  }

  /** Everything that is kept, as the records of a recording. */
  recorded() {
    return this.keyframes.length ? [...beginning(this.keyframes[0].state), ...this.records] : [];
  }

  /** Advance by this many milliseconds of the page's clock. */
  advance(elapsed, mine) {
    if (!this.isPaused) {
      // If the broker's time is unknown, as in a recording, do not go beyond the end of the shown part.
      const end = Math.min(this.hold, this.skew !== null ? mine + this.skew - BEHIND : this.end);
      if (this.isLive && this.speed === 1) this.now = Math.max(this.now, end);
      else this.now = Math.min(this.now + elapsed * this.speed, Math.max(end, this.now));
      if (this.now >= this.until) {
        this.now = this.until;
        this.pause();
      } else if (this.part && this.now >= this.part.to) {
        this.pause();
      }
    }
    if (!this.isStepping) this.applyUntil(this.now);
    advanceTo(this.state, this.now);
  }

  applyUntil(time) {
    while (this.applied < this.records.length && this.records[this.applied].t <= time) {
      const latest = this.keyframes[this.keyframes.length - 1];
      const record = this.records[this.applied];
      if (record.t - latest.t > KEYFRAME) {
        this.keyframes.push({ t: record.t, index: this.applied, state: structuredClone(this.state) });
      }
      this.applied += 1; // before apply(), so that a record that causes an error is not applied again and again
      apply(this.state, record);
    }
  }

  pause() {
    this.isPaused = true;
    this.isLive = false;
    this.until = Infinity;
  }

  play() {
    if (this.part && this.now >= this.part.to) this.seek(this.part.from);
    Object.assign(this, { isPaused: false, isStepping: false });
  }

  /** Show what is happening now, at normal speed. */
  live() {
    Object.assign(this, { isPaused: false, isLive: true, isStepping: false, speed: 1, until: Infinity });
  }

  /** Go to a moment. */
  seek(time) {
    const to = Math.min(Math.max(time, this.first), Math.max(this.end, this.last + HOP));
    this.isLive = this.isStepping = false;
    if (to < this.now) {
      let keyframe = this.keyframes[0];
      for (const each of this.keyframes) if (each.t <= to) keyframe = each;
      this.state = structuredClone(keyframe.state);
      this.applied = keyframe.index;
    }
    this.now = to;
    this.applyUntil(to);
    advanceTo(this.state, to);
  }

  /** Play the next event until its motion ends, without the events that follow it; then pause. */
  step() {
    const next = this.records.findIndex((each, index) => index >= this.applied && each.kind === "event");
    if (next < 0 || (this.part && this.records[next].t > this.part.to)) return;
    for (const record of this.records.slice(this.applied, next)) apply(this.state, record);
    const event = this.records[next];
    this.now = Math.max(this.now, event.t);
    apply(this.state, { ...event, t: this.now });
    this.applied = next + 1;
    this.until = Math.max(this.now + HOP, ...this.state.motions.map((motion) => motion.t1)) - 1;
    Object.assign(this, { isLive: false, isPaused: false, isStepping: true });
  }

  /** Go back to the moment before the latest event. */
  back() {
    let index = this.applied - 1;
    while (index > 0 && this.records[index].kind !== "event") index -= 1;
    if (index < 0) return;
    this.seek(Math.max(this.start, this.records[index].t - 1));
    this.pause();
    this.isStepping = true;
  }
}
