// The page: which bank is asked, the conversation, and what the keys do.

import { Answer, MODES, compare } from "./answer.js";
import { ApiError, call, key, onKeyWanted, setKey, stream } from "./api.js";
import * as documents from "./documents.js";
import { byId, element } from "./dom.js";
import * as passage from "./passage.js";

const model = byId("model");
const question = byId("question");
const send = byId("send");
const stop = byId("stop");
const chat = byId("chat");
const turns = byId("turns");
const welcome = byId("welcome");
const notice = byId("notice");
const said = byId("said");

let conversation = []; // turns: {question, answers}
let asking = null; // what stops the turn that is being answered

function tell(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

/** To who listens. Old lines go, so that the log does not grow without end. */
function say(text, mode) {
  const name = chosenMode() === "all" && mode ? `${MODES[mode]}: ` : "";
  said.append(element("p", { text: name + text }));
  while (said.children.length > 30) said.firstElementChild.remove();
}

// ---- banks -----------------------------------------------------------------------------------------------------------

/** The bank that is chosen; "" without one. A vector store is a bank that has the store's id as its name. */
const chosenBank = () => model.selectedOptions[0]?.dataset.bank ?? "";

async function loadModels() {
  const found = (await call("GET", "v1/models")).data;
  const prefer = model.value; // of now: somebody may have chosen while we asked
  const names = documents.names();
  const options = found.map((one) => {
    const [base, ...rest] = one.id.split("@");
    const bank = rest.join("@");
    return element("option", { value: one.id, text: bank ? (names.get(bank) ?? bank) : `No bank (${base})`, "data-bank": bank || null });
  });
  options.sort((a, b) => Number(!a.dataset.bank) - Number(!b.dataset.bank)); // banks first
  model.replaceChildren(...options);
  model.value = found.some((one) => one.id === prefer) ? prefer : (options[0]?.value ?? "");
  model.disabled = !options.length;
  showModel();
  if (!options.length) tell("This key sees no bank of the server.");
}

/** A model without a bank has nothing to read. */
function showModel() {
  const hasBank = Boolean(chosenBank());
  for (const radio of document.querySelectorAll('input[name="mode"]')) radio.disabled = !hasBank && radio.value !== "none";
  const checked = document.querySelector('input[name="mode"]:checked');
  if (checked?.disabled) {
    document.querySelector('input[name="mode"][value="none"]').checked = true;
    model.dataset.was = checked.value;
  } else if (hasBank && model.dataset.was) {
    document.querySelector(`input[name="mode"][value="${model.dataset.was}"]`).checked = true;
    delete model.dataset.was;
  }
  documents.choose(chosenBank());
}

model.addEventListener("change", showModel);
/** What was just uploaded is asked next, unless a conversation has begun, or another bank was chosen meanwhile. */
documents.onChanged(async (store, isNew) => {
  const before = model.value;
  try {
    await loadModels();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    tell(error.message);
    return;
  }
  const mine = [...model.options].find((option) => option.dataset.bank === store);
  if (mine && isNew && !conversation.length && model.value === before) {
    model.value = mine.value;
    showModel();
  }
});

async function load() {
  tell("");
  let takesDocuments = true;
  try {
    await documents.load().catch((error) => {
      if (error.status === 401 || error.status === 0 || !(error instanceof ApiError)) throw error;
      takesDocuments = false; // this server keeps none
    });
    await loadModels();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    model.replaceChildren(element("option", { text: "–" }));
    model.disabled = true;
    tell(error.status === 401 ? "The server asks for an API key." : error.message);
  }
  byId("documents").hidden = !takesDocuments;
  byId("documents-button").hidden = !takesDocuments;
}

// ---- the key ---------------------------------------------------------------------------------------------------------

const keyDialog = byId("key");
const keyValue = byId("key-value");

function askForKey(why = "") {
  if (keyDialog.open) return;
  byId("key-why").textContent = `${why}This tab keeps it until it is closed. It goes to this server alone.`;
  keyValue.value = key();
  keyDialog.showModal();
  keyValue.focus();
}

onKeyWanted(() => askForKey(key() ? "The server does not know this key. " : "The server asks for a key. "));
byId("key-button").addEventListener("click", () => askForKey());
byId("key-cancel").addEventListener("click", () => keyDialog.close());
byId("key-forget").addEventListener("click", () => {
  setKey("");
  keyDialog.close();
  load();
});
byId("key-form").addEventListener("submit", () => {
  setKey(keyValue.value.trim());
  load();
});
keyDialog.addEventListener("close", () => {
  keyValue.value = "";
});

// ---- asking ----------------------------------------------------------------------------------------------------------

const chosenMode = () => document.querySelector('input[name="mode"]:checked').value;

/** The messages of one mode's own conversation: what another mode answered may come from what this one has not read. */
function messages(mode, asked) {
  const found = [];
  for (const turn of conversation) {
    const answer = turn.answers.find((one) => one.mode === mode);
    const text = answer?.text.text.trim();
    if (!text) continue; // it was not asked, or nothing came
    found.push({ role: "user", content: turn.question }, { role: "assistant", content: text });
  }
  return [...found, { role: "user", content: asked }];
}

async function ask(text) {
  const mine = (asking = new AbortController());
  send.hidden = true;
  stop.hidden = false;
  welcome.hidden = true;
  showDocuments(false); // in a narrow window they would hide the answer
  tell("");
  const modes = chosenMode() === "all" ? Object.keys(MODES) : [chosenMode()];
  const length = Math.min(4096, Math.max(1, Number.parseInt(byId("length").value, 10) || 160));
  const asked = model.value;
  const bank = chosenBank();
  const answers = modes.map((mode) => new Answer(mode, bank, passage.show, say));
  const sent = answers.map((answer) => messages(answer.mode, text));
  const turn = { question: text, answers };
  conversation.push(turn);
  turns.append(element("article", { class: "turn", "aria-label": "Question and answer" },
    element("p", { class: "question", text }),
    element("div", { class: modes.length > 1 ? "answers side-by-side" : "answers" }, ...answers.map((answer) => answer.node))));
  follow(true);
  // One after the other: beside one another they would slow each other down, and their times could not be compared.
  for (const [n, answer] of answers.entries()) {
    if (mine.signal.aborted) answer.stopped();
    else await one(answer, { model: asked, messages: sent[n], memory3: { mode: answer.mode }, max_completion_tokens: length }, mine.signal);
    if (answers.length > 1) compare(answers);
    follow();
  }
  if (asking !== mine) return;
  asking = null;
  const hadFocus = document.activeElement === stop;
  stop.hidden = true;
  send.hidden = false;
  if (hadFocus) question.focus();
}

async function one(answer, body, signal) {
  answer.begin();
  try {
    for await (const chunk of stream("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal)) {
      answer.add(chunk);
      follow();
    }
    answer.finish();
  } catch (error) {
    if (signal.aborted) answer.stopped();
    else if (error instanceof ApiError) answer.fail(error);
    else {
      answer.fail(new ApiError("The page cannot read the server's answer."));
      throw error;
    }
  }
}

let isAtEnd = true;
chat.addEventListener("scroll", () => {
  isAtEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60;
}, { passive: true });

/** Keep the end in sight, unless the reader has scrolled away from it. */
function follow(anyway = false) {
  if (anyway || isAtEnd) chat.scrollTop = chat.scrollHeight;
}

function submit() {
  const text = question.value.trim();
  if (!text || asking) return;
  if (!model.value || model.disabled) {
    tell("There is no bank to ask yet.");
    return;
  }
  question.value = "";
  grow();
  ask(text);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});

/** As high as what is written, up to a third of the window. */
function grow() {
  question.style.blockSize = "auto";
  question.style.blockSize = `${Math.min(question.scrollHeight + 2, innerHeight / 3)}px`;
}
question.addEventListener("input", grow);

stop.addEventListener("click", () => asking?.abort());
byId("clear").addEventListener("click", () => {
  asking?.abort();
  asking = null;
  stop.hidden = true;
  send.hidden = false;
  passage.close();
  conversation = [];
  turns.replaceChildren();
  said.replaceChildren();
  welcome.hidden = false;
  question.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || keyDialog.open) return;
  if (passage.isOpen()) {
    event.preventDefault();
    passage.close();
  } else if (asking) {
    event.preventDefault();
    asking.abort();
  }
});

const documentsButton = byId("documents-button");
function showDocuments(isOpen) {
  byId("documents").classList.toggle("is-open", isOpen);
  documentsButton.setAttribute("aria-expanded", String(isOpen));
}
documentsButton.addEventListener("click", () => showDocuments(!byId("documents").classList.contains("is-open")));

load();
question.focus({ preventScroll: true });
