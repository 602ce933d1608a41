// What the picture's shapes mean. The legend and the picture use this table. docs/how-to/browser.md describes the
// shapes.

/**
 * @typedef {object} Fate
 * @property {string} means  what has happened to the message
 * @property {string} shape  an SVG path around the origin, within 7 units
 */

/** @type {Record<string, Fate>} */
export const FATES = {
  ready: { means: "ready: waits in a queue, or is on its way there", shape: "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z" },
  unacknowledged: {
    means: "unacknowledged: a consumer has it",
    shape: "M6 0A6 6 0 1 1 -6 0A6 6 0 1 1 6 0ZM3 0A3 3 0 1 0 -3 0A3 3 0 1 0 3 0Z",
  },
  acknowledged: { means: "acknowledged", shape: "M-6 0L-4 -2L-1.5 .5L4 -5L6 -3L-1.5 4.5Z" },
  confirmed: {
    means: "confirmed",
    shape: "M-4 -2L-2.7 -3.3L-1.2 -1.8L3 -6L4.3 -4.7L-1.2 .8ZM-4.5 3H4.5V5H-4.5Z",
  },
  requeued: { means: "requeued, and redelivered later", shape: "M0 -7L7 0L0 7L-7 0Z" },
  delayed: {
    means: "delayed by its exchange",
    shape:
      "M6 0A6 6 0 1 1 -6 0A6 6 0 1 1 6 0ZM4.5 0A4.5 4.5 0 1 0 -4.5 0A4.5 4.5 0 1 0 4.5 0ZM-.8 -4H.8V-.8H3.5V.8H-.8Z",
  },
  returned: { means: "returned to the publisher: no queue gets it", shape: "M-7 0L0 -6V-2.5H6V2.5H0V6Z" },
  expired: { means: "expired", shape: "M-5 -6H5L1 0L5 6H-5L-1 0Z" },
  dead: {
    means: "dead-lettered or rejected; a nack, if it moves to a publisher",
    shape: "M-6 -4L-4 -6L0 -2L4 -6L6 -4L2 0L6 4L4 6L0 2L-4 6L-6 4L-2 0Z",
  },
  dropped: { means: "dropped: no queue gets or keeps it", shape: "M-6 -2H6V2H-6Z" },
  stored: { means: "stored offset", shape: "M-4 -6H4V6L0 2L-4 6Z" },
  stream: { means: "in a stream: stays there, readers get copies", shape: "M-5 -5H5V5H-5Z" },
};
