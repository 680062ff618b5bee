// Calls of the server's HTTP interface, with the key of this tab. Every failure is an `ApiError` that can be shown.

const KEY = "memory3.key";

/** What went wrong. `status`: of HTTP, 0 where no answer came; `retryAfter`: seconds, or null. */
export class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let wantsKey = () => {};

/** `listener` is called when the server refuses the key, or the lack of one. */
export function onKeyWanted(listener) {
  wantsKey = listener;
}

/** The key of this tab; "" without one. It is kept until the tab is closed. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

const place = (path) => new URL(path, document.baseURI).href;

function headers(more = {}) {
  return key() ? { ...more, Authorization: `Bearer ${key()}` } : more;
}

function failure(status, text, retryAfter) {
  if (status === 401) wantsKey();
  const after = Number.parseInt(retryAfter ?? "", 10);
  let message = "";
  try {
    const body = JSON.parse(text);
    message = body.error?.message ?? (typeof body.detail === "string" ? body.detail : "");
  } catch {
    message = ""; // a proxy's page, say: not to be shown
  }
  return new ApiError(message || `The server answered ${status}.`, status, Number.isFinite(after) ? after : null);
}

const gone = (error) =>
  error.name === "AbortError" || error instanceof ApiError ? error : new ApiError("The server cannot be reached.");

async function asked(method, path, body, signal) {
  const options = { method, signal, headers: headers(body ? { "Content-Type": "application/json" } : {}) };
  if (body) options.body = JSON.stringify(body);
  const response = await fetch(place(path), options).catch((error) => {
    throw gone(error);
  });
  if (!response.ok) throw failure(response.status, await response.text().catch(() => ""), response.headers.get("Retry-After"));
  return response;
}

/** JSON of a call. */
export async function call(method, path, body = null, signal = undefined) {
  const response = await asked(method, path, body, signal);
  return response.json().catch((error) => {
    throw error.name === "AbortError" ? error : new ApiError("The server's answer is no JSON.", response.status);
  });
}

/** The events of a streamed answer, as objects, until it is complete. */
export async function* stream(path, body, signal) {
  const response = await asked("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  let isDone = false;
  try {
    while (!isDone) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("The connection broke off.");
      });
      left += (value ?? "").replaceAll("\r\n", "\n");
      const events = left.split("\n\n");
      left = done ? "" : events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (!data.length) continue;
        if (data.join("\n") === "[DONE]") {
          isDone = true;
          break;
        }
        const said = JSON.parse(data.join("\n"));
        if (said.error) throw new ApiError(said.error.message ?? "The server failed.", 500);
        yield said;
      }
      if (done && !isDone) throw new ApiError("The connection broke off.");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Send a file. `onProgress` is told which part of it has been sent, 0 to 1.
 * XMLHttpRequest, because fetch cannot say how much it has sent.
 */
export function sendFile(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", place("v1/files"));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    request.addEventListener("error", () => reject(new ApiError("The file could not be sent: the server cannot be reached, or refused it half-way.")));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    request.addEventListener("load", () => {
      if (request.status >= 300) {
        reject(failure(request.status, request.responseText, request.getResponseHeader("Retry-After")));
        return;
      }
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new ApiError("The server's answer is no JSON.", request.status));
      }
    });
    signal.addEventListener("abort", () => request.abort(), { once: true });
    const form = new FormData();
    form.append("purpose", "assistants");
    form.append("file", file, file.name);
    request.send(form);
  });
}

/** All objects of a list that comes in pages, up to `most`. */
export async function listed(path, most = 1000, signal = undefined) {
  const found = [];
  let after = "";
  while (found.length < most) {
    const page = await call("GET", `${path}${path.includes("?") ? "&" : "?"}limit=100${after}`, null, signal);
    found.push(...page.data);
    if (!page.has_more || !page.data.length) break;
    after = `&after=${encodeURIComponent(page.last_id ?? page.data.at(-1).id)}`;
  }
  return found;
}
