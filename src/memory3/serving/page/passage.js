// The passage behind a citation, in the document it was cut from.

import { ApiError, call } from "./api.js";
import { byId, element } from "./dom.js";

const dialog = byId("passage");
const title = byId("passage-title");
const about = byId("passage-about");
const body = byId("passage-body");
const wide = matchMedia("(width >= 75rem)");

let opener = null; // what had the focus
let asking = null;
const AROUND = [6, 60]; // references before and behind the passage: at first, and when asked for more

export function isOpen() {
  return dialog.open;
}

export function close() {
  if (dialog.open) dialog.close();
}

dialog.addEventListener("close", () => {
  asking?.abort();
  if (opener?.isConnected) opener.focus({ preventScroll: true });
  opener?.removeAttribute("aria-expanded");
  opener = null;
});
byId("passage-close").addEventListener("click", close);
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) close(); // beside it
});

/** Beside the conversation where there is room, above it where there is none. */
function reveal() {
  if (dialog.open) return;
  if (wide.matches) dialog.show();
  else dialog.showModal();
}

wide.addEventListener("change", () => {
  if (!dialog.open) return;
  const kept = opener;
  opener = null;
  dialog.close();
  reveal();
  opener = kept;
});

/** Show the passage of a citation. `bank`: it lies in; `button`: gets the focus back. */
export async function show(citation, bank, button) {
  opener?.removeAttribute("aria-expanded");
  opener = button;
  button.setAttribute("aria-expanded", "true");
  title.textContent = citation.title;
  about.textContent = reading(citation);
  about.hidden = !about.textContent;
  body.replaceChildren(...(citation.passage ? [element("mark", { text: citation.passage })] : [element("p", { text: "…" })]));
  reveal();
  title.focus();
  await around(citation, bank, AROUND[0]);
}

/** How it was read. In mode text nobody saw how much. */
function reading(citation) {
  if (citation.mode === "text") return "It stood in the prompt as text.";
  if (citation.share === null) return "";
  return `${Math.round(citation.share * 100)} % of the attention that this part of the answer paid to memories.`;
}

async function around(citation, bank, many) {
  asking?.abort();
  const mine = (asking = new AbortController());
  try {
    const query = new URLSearchParams({ bank, id: citation.reference, around: String(many) });
    const found = await call("GET", `v1/passages?${query}`, null, mine.signal);
    if (mine !== asking) return;
    draw(found, () => around(citation, bank, AROUND[1]), many < AROUND[1]);
  } catch (error) {
    if (error.name === "AbortError" || mine !== asking) return;
    if (!(error instanceof ApiError)) throw error;
    body.append(element("p", { class: "note", text: `The text around it cannot be shown: ${error.message}` }));
  }
}

/** An address of the web that a document came from, as a link; null where it came from elsewhere. */
function origin(source) {
  if (!/^https?:\/\//i.test(source) || !URL.canParse(source)) return null;
  return element("a", { href: source, target: "_blank", rel: "noopener noreferrer", text: "Open the source" });
}

/** `found`: {start, end, source, around: {text, start, is_start, is_end}}: offsets are of the document. */
function draw(found, more, canMore) {
  const part = found.around;
  const characters = Array.from(part.text);
  const [start, end] = [found.start - part.start, found.end - part.start];
  const mark = element("mark", { text: characters.slice(start, end).join(""), tabindex: "-1" });
  const further = (label) => {
    const button = element("button", { type: "button", class: "plain small", text: label });
    button.addEventListener("click", more);
    return button;
  };
  const gap = (isThere, label) => {
    if (isThere) return null;
    return canMore ? further(label) : element("p", { class: "gap", text: "…" });
  };
  body.replaceChildren(...[
    origin(found.source),
    gap(part.is_start, "More above"),
    element("div", { class: "passage-text" }, characters.slice(0, start).join(""), mark, characters.slice(end).join("")),
    gap(part.is_end, "More below"),
  ].filter(Boolean));
  const top = mark.getBoundingClientRect().top - body.getBoundingClientRect().top + body.scrollTop;
  body.scrollTop = Math.max(0, top - body.clientHeight / 4);
}
