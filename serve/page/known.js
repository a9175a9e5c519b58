/** What the user knows of the image beside its pixels: fields from a model's attributes. */

import { byId, make } from "./dom.js";
import { isFinding, title } from "./words.js";

/** Builds the fields of a model; `onChange` hears of every change. */
export function showKnown(card, onChange) {
  const attributes = card.variables.filter(({ name }) => !isFinding(name));
  byId("known").hidden = attributes.length === 0;
  byId("known-fields").replaceChildren(...attributes.map(({ name, levels }) => {
    const id = `known-${name}`;
    return make("div", { class: "row" },
      make("label", { for: id, class: "name" }, title(name)),
      make("select", { id, "data-known": name, onchange: onChange },
        make("option", { value: "" }, "read it from the image"),
        ...levels.map((level) => make("option", { value: level }, level))));
  }));
}

/** What is known, as `observed` of a request; "infer" where nothing is. */
export function readKnown() {
  const fields = [...document.querySelectorAll("[data-known]")].filter((field) => field.value);
  return fields.length ? Object.fromEntries(fields.map((field) => [field.dataset.known, field.value])) : "infer";
}
