/** Small helpers over the DOM. Text is always set as text, never as markup. */

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/**
 * Makes an element.
 *
 * @param {string} tag Such as "button".
 * @param {Object<string, unknown>} attributes Attributes; `on…` functions are listeners, `false`, `null` and
 *     `undefined` are left out, `true` is the empty attribute.
 * @param {...(Node|string|null)} children Nodes and texts; `null` is left out.
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A list of terms: `[["Model", "a"], …]`; values are texts or nodes. */
export function pairs(items) {
  const list = make("dl", { class: "pairs" });
  for (const [name, value] of items) list.append(make("dt", {}, name), make("dd", {}, value));
  return list;
}

/**
 * Radio buttons in a row, as one control.
 *
 * @param {{name: string, labelledby: string, options: [string, string][], value: string,
 *     change: (value: string) => void}} settings Options are value and text.
 */
export function segments({ name, labelledby, options, value, change }) {
  const group = make("div", { class: "segments", role: "radiogroup", "aria-labelledby": labelledby });
  for (const [option, text] of options) {
    const input = make("input", { type: "radio", name, value: option, onchange: () => change(option) });
    input.checked = option === value;
    group.append(make("label", {}, input, make("span", {}, text)));
  }
  return group;
}

let turn = false;

/** Has screen readers say `text` at the next pause. */
export function announce(text) {
  turn = !turn; // the same text twice is said twice: a no-break space makes it another
  byId("announcements").textContent = turn ? text : `${text}\u00a0`;
}

/** Asks for a yes before something that cannot be undone. @returns {Promise<boolean>} */
export function confirmed({ title, text, yes }) {
  const dialog = byId("confirm-dialog");
  byId("confirm-heading").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
