// How large the picture is drawn, and which part of it is seen: it fits its frame unless somebody zooms; what does not fit
// can be scrolled and dragged.

/** Without being asked, the picture becomes neither smaller nor larger than this, so that names can be read. */
const SMALLEST = 0.92;
/** In a page of documentation on a phone, three queues have less room. */
const SMALLEST_EMBEDDED = 0.84;
const LARGEST = 1.6;
/** By hand, it becomes as large as this, and as small as it has to be to fit. */
const CLOSEST = 4;
/** A pointer that moves by more pixels drags. */
const SLIP = 4;

/** The scale of the picture in its frame. */
export class Zoom {
  /**
   * @param {HTMLElement} frame
   * @param {SVGSVGElement} svg
   */
  constructor(frame, svg) {
    this.frame = frame;
    this.svg = svg;
    /** @type {number | "whole" | null} what somebody has chosen: a scale, or the whole picture */
    this.chosen = null;
    this.scale = 1;
    this.size = { width: 1, height: 1 };
    this.drawn = "";
    /** @type {Map<number, PointerEvent>} fingers on the picture */
    this.fingers = new Map();
    /** Where a pointer went down, and what was scrolled then. */
    this.grip = null;
    frame.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.down(event));
    frame.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, (event) => this.up(event));
    // What has been dragged has not been clicked.
    frame.addEventListener("click", (event) => this.wasDragged && event.stopPropagation(), { capture: true });
  }

  get wasDragged() {
    return this.grip?.isDragging === true;
  }

  get smallest() {
    return document.body.classList.contains("embedded") ? SMALLEST_EMBEDDED : SMALLEST;
  }

  /** The scale at which all of the picture is seen. */
  get fitting() {
    const { clientWidth, clientHeight } = this.frame;
    return Math.min(clientWidth / this.size.width, clientHeight / this.size.height, LARGEST);
  }

  /** The picture has this size, without scaling. Called for each frame. */
  resize(width, height) {
    this.size = { width, height };
    this.draw();
  }

  draw() {
    const whole = this.fitting;
    const { chosen } = this;
    this.scale = chosen === "whole" ? whole : (chosen ?? Math.max(this.smallest, whole));
    const { width, height } = this.size;
    const size = [width, height].map((side) => Math.floor(side * this.scale));
    if (this.drawn === size.join()) return;
    this.drawn = size.join();
    this.svg.setAttribute("width", String(size[0]));
    this.svg.setAttribute("height", String(size[1]));
    const isCut = size[0] > this.frame.clientWidth || size[1] > this.frame.clientHeight;
    this.frame.classList.toggle("cut", isCut);
  }

  /** See all of the picture; once more, as much of it as can be read. */
  fit() {
    this.chosen = this.chosen === "whole" ? null : "whole";
    this.draw();
  }

  /** Zoom; this point of the window stays where it is. */
  by(factor, x = undefined, y = undefined) {
    const { frame, svg } = this;
    const outer = frame.getBoundingClientRect();
    const at = { x: x ?? outer.left + outer.width / 2, y: y ?? outer.top + outer.height / 2 };
    const before = svg.getBoundingClientRect();
    const part = { x: (at.x - before.left) / before.width, y: (at.y - before.top) / before.height };
    this.chosen = Math.min(CLOSEST, Math.max(Math.min(this.smallest, this.fitting), this.scale * factor));
    this.draw();
    const after = svg.getBoundingClientRect();
    frame.scrollLeft += after.left + part.x * after.width - at.x;
    frame.scrollTop += after.top + part.y * after.height - at.y;
  }

  /** Show another part of the picture. */
  pan(right, down) {
    this.frame.scrollBy({ left: right, top: down });
  }

  // The mouse, and fingers

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // it scrolls
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 16 : event.deltaY;
    this.by(Math.exp(-Math.max(-50, Math.min(50, pixels)) * 0.01), event.clientX, event.clientY);
  }

  down(event) {
    if (event.pointerType === "touch") this.fingers.set(event.pointerId, event);
    else if (event.button === 0) this.grip = { x: event.clientX, y: event.clientY, isDragging: false };
  }

  move(event) {
    if (this.fingers.has(event.pointerId)) this.pinch(event);
    const { grip, frame } = this;
    if (!grip || event.pointerType === "touch" || !(event.buttons & 1)) return;
    if (!grip.isDragging) {
      if (Math.hypot(event.clientX - grip.x, event.clientY - grip.y) < SLIP) return;
      grip.isDragging = true;
      frame.setPointerCapture(event.pointerId);
      frame.classList.add("dragged");
    }
    this.pan(grip.x - event.clientX, grip.y - event.clientY);
    Object.assign(grip, { x: event.clientX, y: event.clientY });
  }

  /** Two fingers zoom; one of them scrolls, as everywhere. */
  pinch(event) {
    const before = [...this.fingers.values()];
    this.fingers.set(event.pointerId, event);
    const after = [...this.fingers.values()];
    if (after.length !== 2) return;
    const apart = (/** @type {any[]} */ [one, other]) =>
      Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const middle = (axis) => (after[0][axis] + after[1][axis]) / 2;
    if (apart(before)) this.by(apart(after) / apart(before), middle("clientX"), middle("clientY"));
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    this.frame.classList.remove("dragged");
    // The click comes after this.
    const { grip } = this;
    setTimeout(() => this.grip === grip && (this.grip = null));
  }
}
