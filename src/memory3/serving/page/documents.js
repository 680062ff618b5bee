// Uploads into a vector store, and what is in it. A store is a bank of the server, and so has a model id of its own.

import { ApiError, call, listed, sendFile } from "./api.js";
import { byId, bytes, confirmed, element } from "./dom.js";

const NEW = "\u0000new";
const AT_ONCE = 2;
const SHOWN = 50;
const store = byId("store");
const newStore = byId("new-store");
const newName = byId("new-store-name");
const uploads = byId("uploads");
const kept = byId("kept");
const keptSection = byId("kept-section");
const keptMore = byId("kept-more");

let changed = () => {};
let keptPages = null; // of the chosen store, as far as they are shown
const waiting = [];
let running = 0;

/** `listener(storeId, isNew)`: called when documents of a store have come or gone; `isNew`: one has come. */
export function onChanged(listener) {
  changed = listener;
}

/** The chosen store; "" where a new one is to be made. */
export function chosen() {
  return store.value === NEW ? "" : store.value;
}

/** Names of the stores by id. */
export function names() {
  return new Map([...store.options].filter((option) => option.value !== NEW).map((option) => [option.value, option.text]));
}

/** Choose a store, if it is there. */
export function choose(id) {
  if (![...store.options].some((option) => option.value === id) || store.value === id) return;
  store.value = id;
  showStore();
}

/** Ask the server for its stores anew. */
export async function load(prefer = chosen()) {
  const stores = await listed("v1/vector_stores");
  store.replaceChildren(
    ...stores.map((one) => element("option", { value: one.id, text: one.name || one.id })),
    element("option", { value: NEW, text: stores.length ? "A new store …" : "A new store" }),
  );
  store.value = stores.some((one) => one.id === prefer) ? prefer : (stores[0]?.id ?? NEW);
  showStore();
}

function showStore() {
  newStore.hidden = store.value !== NEW || store.options.length === 1;
  showKept();
}

store.addEventListener("change", () => {
  showStore();
  if (store.value === NEW) newName.focus();
});

newStore.addEventListener("submit", async (event) => {
  event.preventDefault();
  await guarded(async () => {
    const made = await create(newName.value.trim());
    newName.value = "";
    await load(made.id);
    changed(made.id, true);
  });
});

const create = (name) => call("POST", "v1/vector_stores", { name });

/** Do something, and show what fails in the list of uploads. */
async function guarded(act) {
  try {
    await act();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const line = element("li", { class: "upload has-failed", role: "alert" }, element("p", { class: "upload-state", text: error.message }));
    line.append(element("button", { type: "button", class: "link", text: "Dismiss", on: { click: () => line.remove() } }));
    uploads.prepend(line);
  }
}

// ---- uploads ---------------------------------------------------------------------------------------------------------

byId("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});

const drop = byId("drop");
let within = 0; // enter and leave come for every element inside
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (name === "dragenter") within += 1;
    if (name === "dragleave") within -= 1;
    if (name === "drop") {
      within = 0;
      add([...event.dataTransfer.files]);
    }
    drop.classList.toggle("is-over", within > 0);
    document.body.classList.toggle("is-dropping", within > 0);
  });
}

let making = null; // the store that the first of several uploads makes

async function target() {
  if (chosen()) return chosen();
  making ??= create("documents").then(async (made) => {
    await load(made.id);
    return made.id;
  }).finally(() => {
    making = null;
  });
  return making;
}

function add(files) {
  byId("documents").classList.add("is-open");
  byId("documents-button").setAttribute("aria-expanded", "true");
  for (const file of files) waiting.push(new Upload(file));
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift().run().finally(() => {
      running -= 1;
      next();
    });
  }
}

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, milliseconds);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(new DOMException("stopped", "AbortError"));
  }, { once: true });
});

class Upload {
  constructor(file) {
    this.file = file;
    this.control = new AbortController();
    this.state = element("span", { class: "upload-state", text: "waiting" });
    this.bar = element("progress", { max: 1, value: 0, "aria-label": `Upload of ${file.name}` });
    this.button = element("button", { type: "button", class: "link", text: "Cancel", "aria-label": `Cancel ${file.name}` });
    this.button.addEventListener("click", () => this.press());
    this.node = element("li", { class: "upload" },
      element("span", { class: "file-name", text: file.name, title: file.name }),
      element("span", { class: "file-size", text: bytes(file.size) }),
      this.bar, this.state, this.button);
    uploads.append(this.node);
    this.isOver = false;
  }

  press() {
    if (this.isOver) {
      this.node.remove();
      return;
    }
    this.control.abort();
    const at = waiting.indexOf(this);
    if (at >= 0) {
      waiting.splice(at, 1);
      this.end("cancelled", "is-cancelled");
    }
  }

  end(text, name) {
    this.isOver = true;
    this.state.textContent = text;
    this.node.classList.add(name);
    this.bar.hidden = true;
    this.button.textContent = "Dismiss";
    this.button.setAttribute("aria-label", `Dismiss ${this.file.name}`);
  }

  /** The list of the store shows it now: go after a while, unless somebody is here. */
  leave() {
    setTimeout(() => {
      if (this.node.matches(":hover, :focus-within")) this.leave();
      else this.node.remove();
    }, 8000);
  }

  async run() {
    const { signal } = this.control;
    let sent = null;
    let into = "";
    let isNew = false;
    try {
      into = await target();
      this.state.textContent = "sending";
      sent = await sendFile(this.file, (part) => {
        this.bar.value = part;
        this.state.textContent = part < 1 ? `${Math.floor(part * 100)} % sent` : "sent";
      }, signal);
      this.bar.removeAttribute("value"); // how long the rest takes is not known
      this.state.textContent = "encoding";
      await this.remembered(into, sent.id, signal);
      this.end("in the bank", "is-done");
      this.node.setAttribute("role", "status");
      this.leave();
      isNew = true;
    } catch (error) {
      if (error.name === "AbortError") this.end("cancelled", "is-cancelled");
      else if (error instanceof ApiError) this.end(error.message, "has-failed");
      else throw error;
      if (this.node.classList.contains("has-failed")) this.state.setAttribute("role", "alert");
      if (sent) await forget(into, sent.id).catch(() => {}); // nothing of it is to stay half-way
    }
    if (into) {
      if (into === chosen()) showKept();
      changed(into, isNew);
    }
  }

  async remembered(into, id, signal) {
    const place = `v1/vector_stores/${encodeURIComponent(into)}/files`;
    let found = await call("POST", place, { file_id: id }, signal);
    for (let wait = 300; found.status === "in_progress"; wait = Math.min(2000, wait * 1.3)) {
      await pause(wait, signal);
      found = await call("GET", `${place}/${encodeURIComponent(id)}`, null, signal);
      const part = found.progress; // not every server says it
      if (typeof part === "number") this.bar.value = part;
    }
    if (found.status !== "completed") throw new ApiError(found.last_error?.message ?? `It was not remembered (${found.status}).`);
  }
}

async function forget(from, id) {
  await call("DELETE", `v1/vector_stores/${encodeURIComponent(from)}/files/${encodeURIComponent(id)}`).catch((error) => {
    if (error.status !== 404) throw error; // it had not got that far
  });
  await call("DELETE", `v1/files/${encodeURIComponent(id)}`);
}

// ---- what is in the store --------------------------------------------------------------------------------------------

async function showKept() {
  const mine = (keptPages = { store: chosen(), after: "" });
  if (!mine.store) {
    keptSection.hidden = true;
    return;
  }
  kept.replaceChildren();
  await guarded(() => page(mine));
}

keptMore.addEventListener("click", () => guarded(() => page(keptPages)));

async function page(mine) {
  const place = `v1/vector_stores/${encodeURIComponent(mine.store)}/files`;
  const after = mine.after ? `&after=${encodeURIComponent(mine.after)}` : "";
  const [found, names] = await Promise.all([call("GET", `${place}?limit=${SHOWN}${after}`), namesOfFiles()]);
  if (mine !== keptPages) return; // another store was chosen meanwhile
  for (const one of found.data) kept.append(line(mine.store, one, names.get(one.id) ?? one.id));
  mine.after = found.last_id ?? found.data.at(-1)?.id ?? "";
  keptMore.hidden = !found.has_more;
  keptSection.hidden = !kept.children.length;
}

const namesOfFiles = async () => new Map((await listed("v1/files")).map((file) => [file.id, file.filename]));

function line(from, one, name) {
  const made = element("li", { class: "kept-file" }, element("span", { class: "file-name", text: name, title: name }));
  if (one.status !== "completed") {
    made.append(element("span", { class: "upload-state", text: one.last_error?.message ?? one.status.replaceAll("_", " ") }));
  }
  made.append(confirmed("Remove", name, (button) => guarded(async () => {
    button.disabled = true;
    try {
      await forget(from, one.id);
      made.remove();
      keptSection.hidden = !kept.children.length;
      changed(from, false);
    } finally {
      button.disabled = false;
    }
  })));
  return made;
}
