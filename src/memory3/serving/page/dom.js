// Elements from plain values. Texts become text nodes and nothing else: documents and answers come from strangers.

/** The element with an id; it has to exist. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * A new element.
 * `settings`: attributes by name; `class`, `text` and `on` ({event: listener}) are understood; false and null are left out.
 */
export function element(name, settings = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(settings)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else made.setAttribute(key === "class" ? "class" : key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** 0.083 -> "83 ms", 2.4 -> "2.4 s". */
export function seconds(value) {
  if (value < 1) return `${Math.max(1, Math.round(value * 1000))} ms`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
}

/** 48000 -> "48 KB": as commands and the documentation count, by 1000. */
export function bytes(value) {
  if (value < 1e3) return `${value} B`;
  if (value < 999_500) return `${Math.round(value / 1e3)} KB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

export function count(value) {
  return value.toLocaleString("en");
}

/** A button that asks once more before it acts. */
export function confirmed(label, name, act) {
  let armed = 0;
  const button = element("button", { type: "button", class: "link", text: label, "aria-label": `${label} ${name}` });
  const disarm = () => {
    clearTimeout(armed);
    armed = 0;
    button.textContent = label;
    button.setAttribute("aria-label", `${label} ${name}`);
  };
  button.addEventListener("click", () => {
    if (armed) {
      disarm();
      act(button);
      return;
    }
    button.textContent = `${label}?`;
    button.setAttribute("aria-label", `${label} ${name}? Press again to do so.`);
    armed = setTimeout(disarm, 4000);
  });
  button.addEventListener("blur", () => armed && disarm());
  return button;
}
