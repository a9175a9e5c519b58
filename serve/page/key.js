/** Asking for the API key. */

import { keepKey, key, onUnauthorised } from "./api.js";
import { byId } from "./dom.js";

/** Wires the dialog; `onKey` hears of every new key. */
export function wireKey(onKey) {
  const dialog = byId("key-dialog");
  byId("key-button").addEventListener("click", () => ask(""));
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-form").addEventListener("submit", () => {
    keepKey(byId("key").value.trim());
    byId("key").value = "";
    show();
    onKey();
  });
  onUnauthorised((problem) => ask([problem.title, problem.detail, problem.remedy].filter(Boolean).join(". ")));
  show();
  if (!key()) ask("");
}

function ask(problem) {
  byId("key-problem").textContent = problem;
  byId("key-problem").hidden = !problem;
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function show() {
  byId("key-state").textContent = key() ? "Key set" : "Enter key";
}
