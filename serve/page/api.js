/** The API under v1/: requests with the key, answers as JSON, errors as `Problem`. */

const STORED = "counterray.key";

/** What went wrong, as RFC 9457 says it. */
export class Problem extends Error {
  /** @param {{title: string, detail?: string, remedy?: string, status?: number, instance?: string,
   *     retryAfter?: number|null}} fields Status 0 where no answer came; seconds to wait where the server says. */
  constructor({ title, detail = "", remedy = "", status = 0, instance = "", retryAfter = null }) {
    super(title);
    Object.assign(this, { title, detail, remedy, status, instance, retryAfter });
  }
}

/** The key of this tab, or the empty text. */
export const key = () => sessionStorage.getItem(STORED) ?? "";

/** Keeps a key for this tab. */
export const keepKey = (value) => sessionStorage.setItem(STORED, value);

/** Takes the key from a link that ends in `#key=…`, and takes it out of the address and the history. */
export function takeKeyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!found) return;
  keepKey(found);
  history.replaceState(null, "", location.pathname + location.search);
}

const unauthorised = new Set();

/** Calls `listener` whenever the server refuses the key. */
export const onUnauthorised = (listener) => unauthorised.add(listener);

/**
 * Sends a request.
 *
 * @param {string} path Below v1/, such as "models".
 * @param {{method?: string, body?: object, signal?: AbortSignal}} options The body goes as JSON.
 * @returns {Promise<Response>} With a status of 2xx.
 * @throws {Problem} Or an AbortError, once `signal` aborts.
 */
async function send(path, { method = "GET", body, signal } = {}) {
  const headers = { Authorization: `Bearer ${key()}`, Accept: "application/json, application/problem+json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`v1/${path}`, {
      method, headers, signal, body: body && JSON.stringify(body), credentials: "omit", cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The server does not answer",
      detail: "The connection could not be made, or broke off.",
      remedy: "Check that the server runs and can be reached, then try again.",
    });
  }
  if (response.ok) return response;
  const problem = await readProblem(response);
  if (problem.status === 401) for (const listener of unauthorised) listener(problem);
  throw problem;
}

async function readProblem(response) {
  const wait = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const common = { status: response.status, retryAfter: Number.isFinite(wait) ? wait : null };
  const type = response.headers.get("Content-Type") ?? "";
  if (type.includes("json")) {
    const said = await response.json().catch(() => ({}));
    if (typeof said.title === "string") return new Problem({ ...said, ...common });
  }
  return new Problem({
    ...common,
    title: `The server answered with status ${response.status}`,
    detail: "It gave no further reason; something between this page and the server may have answered.",
    remedy: "Try again; if it stays so, look into the server's logs.",
  });
}

/** An answer's JSON; see `send`. */
export const json = async (path, options) => (await send(path, options)).json();

/** An answer's text; see `send`. */
export const text = async (path, options) => (await send(path, options)).text();

/** For requests whose answer has no body; see `send`. */
export const done = async (path, options) => void (await send(path, options));
