// How large the picture is drawn, and which part of it is visible. The picture fits its frame, unless the user zooms or
// it would be too small to read. What does not fit can be scrolled and dragged.

/** Until the user zooms, the scale is not smaller than this, so that names can be read, and not larger than LARGEST. */
const SMALLEST = 0.92;
/** The same in a documentation page, where there is less room for three queues on a phone. */
const SMALLEST_EMBEDDED = 0.84;
const LARGEST = 1.6;
/** Users can zoom in up to this scale, and zoom out until the whole picture fits. */
const CLOSEST = 4;
/** A pointer that moves by at least this many pixels drags the picture. */
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
    /** @type {number | "whole" | null} what the user has chosen, if anything: a scale, or the whole picture */
    this.chosen = null;
    this.scale = 1;
    this.size = { width: 1, height: 1 };
    this.drawn = "";
    /** @type {Map<number, PointerEvent>} fingers on the picture */
    this.fingers = new Map();
    /** While the mouse button is down: the pointer's last position, and whether it drags the picture. */
    this.grip = null;
    frame.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.down(event));
    frame.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, (event) => this.up(event));
    // The click at the end of a drag must not choose a node.
    frame.addEventListener("click", (event) => this.wasDragged && event.stopPropagation(), { capture: true });
  }

  get wasDragged() {
    return this.grip?.isDragging === true;
  }

  get smallest() {
    return document.body.classList.contains("embedded") ? SMALLEST_EMBEDDED : SMALLEST;
  }

  /** The scale at which the whole picture is visible. */
  get fitting() {
    const { clientWidth, clientHeight } = this.frame;
    return Math.min(clientWidth / this.size.width, clientHeight / this.size.height, LARGEST);
  }

  /** Set the picture's size without scaling. Called for each frame. */
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

  /** Show the whole picture; if that was already chosen, use a scale at which names can be read. */
  fit() {
    this.chosen = this.chosen === "whole" ? null : "whole";
    this.draw();
  }

  /** Zoom. This point of the window, by default the middle of the frame, stays where it is. */
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

  // Mouse and touch

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel scrolls
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

  /** Zoom with two fingers. One finger scrolls, as usual. */
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
    // The click event comes after this event, and must still see whether the picture was dragged.
    const { grip } = this;
    setTimeout(() => this.grip === grip && (this.grip = null));
  }
}
