// The text of an answer, in which stretches are followed by the numbers of what they were read from.
//
// Offsets of the server count characters (code points). JavaScript's count UTF-16 units, so a text is kept as an array
// of its characters here.

import { element } from "./dom.js";

/** `**bold**` and `code` as elements, all else as it is. Nothing else of Markdown, and never HTML. */
export function formatted(text) {
  return text.split(/(\*\*[^*\n]+\*\*|`[^`\n]+`)/).filter(Boolean).map((part) => {
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return element("strong", { text: part.slice(2, -2) });
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return element("code", { text: part.slice(1, -1) });
    return document.createTextNode(part);
  });
}

/** Parts of a text in order, from citations {start, end}: `[{start, end, citations}]`; what overlaps is cut. */
export function parts(length, citations) {
  const stretches = new Map();
  for (const citation of citations) {
    const end = Math.min(citation.end, length);
    if (!(citation.start >= 0 && citation.start < end)) continue;
    const name = `${citation.start}:${end}`;
    if (!stretches.has(name)) stretches.set(name, { start: citation.start, end, citations: [] });
    stretches.get(name).citations.push(citation);
  }
  const found = [];
  let at = 0;
  for (const stretch of [...stretches.values()].sort((a, b) => a.start - b.start || a.end - b.end)) {
    if (stretch.end <= at) {
      found.at(-1)?.citations.push(...stretch.citations);
      continue;
    }
    const start = Math.max(stretch.start, at);
    if (start > at) found.push({ start: at, end: start, citations: [] });
    found.push({ start, end: stretch.end, citations: stretch.citations });
    at = stretch.end;
  }
  if (at < length) found.push({ start: at, end: length, citations: [] });
  return found;
}

/** A growing text in an element. What has been shown is left alone, so that focus and selection stay where they are. */
export class CitedText {
  /**
   * `into`: the element. `open(citation, chip)`: called when a number is chosen; a citation has `number` and `title`.
   */
  constructor(into, open) {
    this.characters = [];
    this.citations = [];
    this.into = into;
    this.open = open;
    this.shown = []; // {name, node} in order
  }

  get text() {
    return this.characters.join("");
  }

  add(text, citations = []) {
    this.characters.push(...text);
    this.citations.push(...citations);
    this.render();
  }

  render() {
    parts(this.characters.length, this.citations).forEach((part, n) => {
      const text = this.characters.slice(part.start, part.end).join("");
      const name = `${part.start}|${part.citations.map((one) => one.number).join()}|${text}`;
      const old = this.shown[n];
      if (old?.name === name) return;
      const node = part.citations.length ? this.stretch(text, part.citations) : element("span", {}, ...formatted(text));
      if (old) old.node.replaceWith(node);
      else this.into.append(node);
      this.shown[n] = { name, node };
    });
    const total = parts(this.characters.length, this.citations).length;
    this.shown.splice(total).forEach((left) => left.node.remove());
  }

  stretch(text, citations) {
    const body = text.trimEnd();
    const made = element("span", { class: "stretch" }, element("span", { class: "stretch-text" }, ...formatted(body)));
    const seen = new Set();
    for (const citation of citations) {
      if (seen.has(citation.number)) continue;
      seen.add(citation.number);
      const chip = element("button", {
        type: "button",
        class: "chip",
        text: citation.number,
        title: citation.title,
        "aria-label": `Source ${citation.number}: ${citation.title}`,
        "aria-haspopup": "dialog",
      });
      chip.addEventListener("click", () => this.open(citation, chip));
      made.append("\u2060", chip); // no line break between text and number
    }
    made.append(text.slice(body.length));
    return made;
  }
}
