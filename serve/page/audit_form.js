/** The form that starts an audit. */

import { byId, make } from "./dom.js";
import { isFinding } from "./words.js";

const EXACT = "exact";

/** Reads an AuditRequest of the API from the form. */
export class AuditForm {
  /** @param {{models: () => object[], onStart: (request: object) => void, onCancel: () => void}} settings */
  constructor({ models, onStart, onCancel }) {
    this.models = models;
    byId("audit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      onStart(this.#read());
    });
    byId("audit-form-cancel").addEventListener("click", onCancel);
    byId("audit-generator").addEventListener("change", () => this.#hint());
  }

  /** Shows the form, with what was typed before. */
  open() {
    const select = byId("audit-generator");
    const before = select.value;
    const names = [...this.models().map(({ name }) => name).filter((name) => name !== EXACT), EXACT];
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(before)) select.value = before;
    this.#hint();
    byId("audit-form").hidden = false;
    byId("audit-classifiers").focus();
  }

  /** Hides the form. */
  close() {
    byId("audit-form").hidden = true;
  }

  #hint() {
    const card = this.models().find(({ name }) => name === byId("audit-generator").value);
    const names = (card?.variables ?? []).map(({ name }) => name).filter((name) => !isFinding(name));
    byId("audit-attributes-hint").textContent = names.length ? `This model sets: ${names.join(", ")}.` : "Such as sex, scanner.";
  }

  #read() {
    const listed = (id, separator) => byId(id).value.split(separator).map((part) => part.trim()).filter(Boolean);
    const studies = byId("audit-studies").value;
    return {
      classifiers: listed("audit-classifiers", "\n"),
      generator: byId("audit-generator").value,
      data: byId("audit-data").value.trim(),
      attributes: listed("audit-attributes", ","),
      studies: studies ? Number(studies) : null,
    };
  }
}
