// One answer: its text with citations, its sources, and what it took.

import { CitedText } from "./cited.js";
import { bytes, count, element, seconds } from "./dom.js";

export const MODES = { memory: "Memory", text: "Text", none: "None" };
const READS = { memory: "reads memories", text: "reads passages as text", none: "reads nothing" };
const MISSING = "Probably not found in the bank: the answer may be made up.";
const REASONS = { length: "It is cut: that many tokens were asked for.", time: "It is cut: its time was over." };

/** A citation of the server's annotation, or null where it is none that can be shown. */
function citation(annotation) {
  const cited = annotation?.url_citation ?? annotation;
  if (!cited || typeof cited !== "object") return null;
  const whole = (value) => (Number.isInteger(value) ? value : -1);
  return {
    start: whole(cited.start_index),
    end: whole(cited.end_index),
    title: String(cited.title || cited.source || cited.url || "Untitled"),
    ...places(cited),
  };
}

/** Of a path its last part; the passage shows it whole. */
const short = (title) => (title.includes("://") ? title : (title.split("/").filter(Boolean).at(-1) ?? title));

/** The first words of a passage, in one line. */
const beginning = (passage) => Array.from(passage.replace(/\s+/g, " ").trim()).slice(0, 120).join("");

/** Where the passage lies. */
function places(cited) {
  return {
    reference: String(cited.reference_id ?? cited.url ?? ""),
    passage: String(cited.content ?? cited.text ?? ""),
    url: String(cited.url ?? ""),
    share: typeof cited.share === "number" ? cited.share : null,
  };
}

export class Answer {
  /** `mode`: of `MODES`; `bank`: that it reads; `open(citation, bank, button)`: shows a passage; `say(text)`: to who listens. */
  constructor(mode, bank, open, say) {
    this.mode = mode;
    this.say = (text) => say(text, mode);
    this.numbers = new Map(); // of the passages, in the order they were first cited
    this.unsaid = "";
    this.status = element("span", { class: "status", text: "waiting" });
    this.body = element("div", { class: "text" });
    this.text = new CitedText(this.body, (one, chip) => open(one, bank, chip));
    this.openSource = (one, button) => open(one, bank, button);
    this.sources = element("ol", { class: "sources", "aria-label": "Sources", hidden: true });
    this.figures = element("dl", { class: "figures", hidden: true });
    this.note = element("p", { class: "note", hidden: true });
    this.node = element(
      "article",
      { class: "answer", "data-mode": mode, "aria-label": `Answer, ${MODES[mode]}` },
      element("header", { class: "answer-top" },
        element("span", { class: "mode-name", text: MODES[mode] }),
        element("span", { class: "mode-reads", text: READS[mode] }),
        this.status),
      this.body, this.note, this.sources, this.figures,
    );
    this.took = {};
  }

  begin() {
    this.status.textContent = this.mode === "none" ? "reading the question" : "looking things up";
    this.node.classList.add("is-running");
    this.body.setAttribute("aria-busy", "true");
    this.began = performance.now();
  }

  /** Take a chunk of the stream. */
  add(chunk) {
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const found = (delta.annotations ?? []).map(citation).filter(Boolean);
    found.forEach((one) => this.number(one));
    if (delta.content || found.length) {
      if (delta.content && this.first === undefined) {
        this.first = (performance.now() - this.began) / 1000;
        this.status.textContent = "answering";
      }
      this.text.add(delta.content ?? "", found);
      this.speak(delta.content ?? "", false);
    }
    if (choice?.finish_reason) this.reason = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
    if (choice?.memory3) {
      this.about = choice.memory3;
      this.reason = this.about.finish ?? this.reason;
      if (this.about.note) this.tell(this.about.note);
    }
  }

  number(one) {
    const name = one.reference || `${one.title}\n${one.passage}`;
    const known = this.numbers.get(name);
    one.number = known ? known.number : this.numbers.size + 1;
    one.mode = this.mode;
    if (known) return;
    this.numbers.set(name, one);
    const button = element("button", { type: "button", class: "source", "aria-haspopup": "dialog" },
      element("span", { class: "chip", "aria-hidden": "true", text: one.number }),
      element("span", { class: "source-title", text: short(one.title), title: one.title }),
      element("span", { class: "source-start", text: beginning(one.passage) }));
    button.addEventListener("click", () => this.openSource(one, button));
    this.sources.append(element("li", {}, button));
    this.sources.hidden = false;
  }

  /** Whole sentences to the live region, so that a screen reader is not told every token. */
  speak(more, last) {
    this.unsaid += more;
    const ends = [...this.unsaid.matchAll(/[.!?]['")\]]*\s|\n/g)];
    const upto = last ? this.unsaid.length : ends.length ? ends.at(-1).index + ends.at(-1)[0].length : 0;
    const now = this.unsaid.slice(0, upto).trim();
    this.unsaid = this.unsaid.slice(upto);
    if (now) this.say(now);
  }

  finish() {
    this.end("done");
    this.speak("", true);
    const told = [this.about?.found === false ? MISSING : "", REASONS[this.reason] ?? ""].filter(Boolean);
    if (told.length) this.tell(told.join(" "));
    if (!this.text.text.trim()) this.tell("The model said nothing.");
    this.measure();
    this.say(this.numbers.size ? `Answer complete, ${this.numbers.size} sources.` : "Answer complete.");
  }

  stopped() {
    this.end("stopped");
    this.tell("You stopped it.");
    this.measure();
  }

  fail(error) {
    this.end("failed");
    this.node.classList.add("has-failed");
    const wait = error.retryAfter ? ` Ask again in ${error.retryAfter} s.` : "";
    this.tell(error.message + wait);
    this.say(`It failed: ${error.message}`);
  }

  end(status) {
    this.status.textContent = status;
    this.status.dataset.status = status;
    this.node.classList.remove("is-running");
    this.body.removeAttribute("aria-busy");
    if (this.began !== undefined) this.total = (performance.now() - this.began) / 1000;
  }

  tell(text) {
    this.note.textContent = text;
    this.note.hidden = false;
  }

  /** Show what it took: what the server says, else what was seen from here. */
  measure() {
    this.took = {
      first: this.about?.first_token_seconds ?? this.first,
      total: this.about?.total_seconds ?? this.total,
      bytes: this.about?.bytes_read,
      prompt: this.usage?.prompt_tokens,
      answer: this.usage?.completion_tokens,
    };
    const rows = [
      ["first", "First token", seconds],
      ["total", "Total", seconds],
      ["bytes", "Read", bytes],
      ["prompt", "Prompt", (value) => `${count(value)} tokens`],
      ["answer", "Answer", (value) => `${count(value)} tokens`],
    ];
    this.figures.replaceChildren(...rows.filter(([name]) => this.took[name] !== undefined).map(([name, label, shown]) =>
      element("div", { class: "figure", "data-figure": name },
        element("dt", { text: label }),
        element("dd", {}, element("span", { class: "figure-value", text: shown(this.took[name]) }), element("span", { class: "figure-bar", "aria-hidden": "true" })))));
    this.figures.hidden = !this.figures.children.length;
  }
}

/** Bars of several answers to one question, each as long as its part of the largest. */
export function compare(answers) {
  for (const name of ["first", "total", "bytes", "prompt", "answer"]) {
    const most = Math.max(...answers.map((answer) => answer.took[name] ?? 0));
    for (const answer of answers) {
      const bar = answer.figures.querySelector(`[data-figure="${name}"] .figure-bar`);
      if (bar) bar.style.setProperty("--part", most ? (answer.took[name] ?? 0) / most : 0);
    }
  }
}
