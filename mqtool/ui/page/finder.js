// The search: finds names, keys, headers, properties and bodies that contain a text.

/** Finds a text in what is drawn. */
export class Finder {
  constructor() {
    this.text = "";
    /** The results of the latest search: the ids of nodes, the keys of arrows, and the number of all results. */
    this.nodes = new Set();
    this.arrows = new Set();
    this.count = 0;
    /** By a message's details: whether the message contains the text. */
    this.known = new WeakMap();
  }

  /** Whether the search has found anything. */
  get hasFound() {
    return this.count > 0;
  }

  /** The result in words; "" if nothing is searched for. */
  get result() {
    return this.text ? `${this.count.toLocaleString("en")} found` : "";
  }

  look(text) {
    const wanted = text.trim().toLowerCase();
    if (wanted === this.text) return;
    this.text = wanted;
    this.known = new WeakMap();
  }

  has(text) {
    return String(text).toLowerCase().includes(this.text);
  }

  /** Whether the key, a header, a property or the body of a message contains the text. */
  hasMessage(details) {
    if (!this.text || !details) return false;
    let found = this.known.get(details);
    if (found === undefined) {
      const { routing_key, headers, properties, body } = details;
      found = [routing_key, JSON.stringify(headers), JSON.stringify(properties), body ?? ""].some((each) =>
        this.has(each),
      );
      this.known.set(details, found);
    }
    return found;
  }

  /** Search a state. Folded nodes are found by the names of their members. */
  search(state, moment, view, names) {
    this.nodes.clear();
    this.arrows.clear();
    this.count = 0;
    if (!this.text) return;
    for (const [id, name] of names) {
      if (!this.has(name)) continue;
      this.nodes.add(view.drawn(id));
      this.count += 1;
    }
    for (const link of state.links.values()) {
      if (!link.keys.some((key) => this.has(key))) continue;
      this.arrows.add(`${view.drawn(link.from)} ${view.drawn(link.to)}`);
      this.count += 1;
    }
    const seen = new Set();
    for (const copy of [...state.copies.values(), ...moment.moving]) {
      if (seen.has(copy.key) || !this.hasMessage(copy.details)) continue;
      seen.add(copy.key);
      this.count += 1;
      if (copy.node !== undefined) this.nodes.add(view.drawn(copy.node));
    }
  }
}
