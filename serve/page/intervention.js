/** What the image should show: controls from a model's card, and the intervention that they say. */

import { byId, make, segments } from "./dom.js";
import { isFinding, title } from "./words.js";

const KEEP = "keep";
const SEVERITIES = ["", "mild", "moderate", "severe"];
const SEVERITY_WORDS = ["model's choice", "mild", "moderate", "severe"];
const NORMAL = "finding.no_finding";
const MOST_LETTERS = 14; // of all levels together, for one row of segments

/** The form; tells `onChange` of every change, and how it was made. */
export class InterventionPanel {
  /** @param {{onChange: (how: "control"|"words") => void, onGenerate: () => void}} listeners */
  constructor({ onChange, onGenerate }) {
    this.onChange = onChange;
    this.card = null;
    /** Variable to level, of those that are to change. @type {Map<string, string>} */
    this.chosen = new Map();
    this.severity = "";
    const form = byId("intervention");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!form.checkValidity()) byId("sampling").open = true; // or the message would point at nothing
      if (form.reportValidity()) onGenerate();
    });
    for (const radio of document.getElementsByName("way")) {
      radio.addEventListener("change", () => {
        this.#showWay();
        onChange("control");
      });
    }
    byId("prompt").addEventListener("input", () => {
      byId("prompt-count").textContent = `${byId("prompt").value.length} of 500 characters. Ctrl + Enter generates.`;
      onChange("words");
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    for (const name of ["count", "seed", "steps", "guidance"]) {
      byId(name).addEventListener("input", () => onChange("control"));
    }
    byId("clear").addEventListener("click", () => {
      this.chosen.clear();
      this.severity = "";
      byId("prompt").value = "";
      this.#buildVariables();
      onChange("control");
    });
  }

  /** Builds the controls of a model; what was chosen stays where this model can set it. */
  showModel(card) {
    this.card = card;
    const levels = new Map(card.variables.map((variable) => [variable.name, variable.levels]));
    for (const [name, level] of this.chosen) {
      if (!levels.get(name)?.includes(level)) this.chosen.delete(name);
    }
    this.#buildVariables();
    const both = card.prompts && card.variables.length > 0;
    byId("way").hidden = !both;
    if (!both) document.querySelector(`input[name=way][value=${card.prompts ? "prompt" : "do"}]`).checked = true;
    this.#showWay();
    for (const name of ["count", "seed"]) this.#offer(name, card.seeded);
    for (const name of ["steps", "guidance"]) {
      this.#offer(name, card[name] !== null);
      byId(name).placeholder = String(card[name] ?? "");
    }
    byId("sampling").hidden = !card.seeded && card.steps === null && card.guidance === null;
  }

  /**
   * What is asked for.
   *
   * @returns {object|null} An Intervention of the API; `null` where nothing is to change.
   */
  read() {
    if (!this.card || !byId("intervention").checkValidity()) return null;
    const asked = this.#way() === "prompt" ? this.#words() : this.#variables();
    if (!asked) return null;
    const { seeded, steps, guidance } = this.card;
    const first = Number(byId("seed").value);
    const count = seeded ? Number(byId("count").value) : 1;
    asked.seeds = Array.from({ length: count }, (_, place) => (seeded ? first : 0) + place);
    if (steps !== null && byId("steps").value) asked.steps = Number(byId("steps").value);
    if (guidance !== null && byId("guidance").value) asked.guidance = Number(byId("guidance").value);
    return asked;
  }

  /** Names that the intervention is about, as scores name them: `edema`, `sex=male`. */
  targets() {
    if (this.#way() === "prompt") return new Set();
    return new Set([...this.chosen].map(([name, level]) =>
      isFinding(name) ? name.slice(name.indexOf(".") + 1) : `${name}=${level}`));
  }

  #offer(name, offered) {
    byId(`${name}-field`).hidden = !offered;
    byId(name).disabled = !offered; // what is not offered is not checked either
  }

  #way() {
    return document.querySelector("input[name=way]:checked").value;
  }

  #words() {
    const prompt = byId("prompt").value.trim();
    return prompt ? { prompt } : null;
  }

  #variables() {
    if (!this.chosen.size) return null;
    const set = [...this.chosen].map(([name, level]) => [name, isFinding(name) ? this.#code(name, level) : level]);
    const asked = { do: Object.fromEntries(set) };
    if (this.severity && this.#graded().length) asked.severity = this.severity;
    return asked;
  }

  #code(name, level) {
    return this.card.variables.find((variable) => variable.name === name).levels.indexOf(level);
  }

  /** Findings that are set to present, and can be more or less marked. */
  #graded() {
    return [...this.chosen].filter(([name, level]) =>
      isFinding(name) && name !== NORMAL && this.#code(name, level) === 1);
  }

  #showWay() {
    const words = this.#way() === "prompt";
    byId("words").hidden = !words;
    byId("variables").hidden = words;
  }

  #buildVariables() {
    const findings = this.card.variables.filter(({ name }) => isFinding(name));
    const attributes = this.card.variables.filter(({ name }) => !isFinding(name));
    byId("variables").replaceChildren(...[
      findings.length ? this.#group("Findings", findings.map((one) => this.#row(one, findingOptions(one)))) : null,
      findings.length && this.card.severity ? this.#severitySlider() : null,
      attributes.length ? this.#group("Attributes", attributes.map((one) => this.#attribute(one))) : null,
    ].filter(Boolean));
    this.#enableSeverity();
  }

  #group(name, rows) {
    return make("fieldset", { class: "variables" }, make("legend", {}, name), ...rows);
  }

  #row(variable, options) {
    const id = `variable-${variable.name}`;
    return make("div", { class: "row", "data-variable": variable.name },
      make("span", { id, class: "name" }, title(variable.name)),
      segments({
        name: id, labelledby: id, options, value: this.chosen.get(variable.name) ?? KEEP,
        change: (level) => this.#set(variable.name, level),
      }));
  }

  /** Ordered numbers make a slider, few short levels stand side by side, and all else is a list. */
  #attribute(variable) {
    const { name, levels } = variable;
    const id = `variable-${name}`;
    const label = make("label", { class: "name", for: id }, title(name));
    if (levels.length > 2 && levels.every((level) => /^[\d<>≥≤]/.test(level))) {
      return this.#levelSlider(variable, id, label);
    }
    if (levels.join("").length <= MOST_LETTERS) {
      return this.#row(variable, [[KEEP, "As is"], ...levels.map((level) => [level, level])]);
    }
    const select = make("select", { id, onchange: () => this.#set(name, select.value) },
      make("option", { value: KEEP }, "as is"), ...levels.map((level) => make("option", { value: level }, level)));
    select.value = this.chosen.get(name) ?? KEEP;
    return make("div", { class: "row", "data-variable": name }, label, select);
  }

  #levelSlider({ name, levels }, id, label) {
    const place = levels.indexOf(this.chosen.get(name)) + 1;
    const output = make("output", { for: id });
    const input = make("input", { type: "range", id, min: 0, max: levels.length, step: 1, value: place });
    const show = () => {
      const word = levels[Number(input.value) - 1] ?? "as is";
      output.textContent = word;
      input.setAttribute("aria-valuetext", word);
    };
    input.addEventListener("input", () => {
      show();
      this.#set(name, levels[Number(input.value) - 1] ?? KEEP);
    });
    show();
    return make("div", { class: "row range", "data-variable": name }, label, input, output);
  }

  #severitySlider() {
    const output = make("output", { for: "severity" });
    const input = make("input", {
      type: "range", id: "severity", min: 0, max: 3, step: 1, value: SEVERITIES.indexOf(this.severity),
    });
    const show = () => {
      output.textContent = SEVERITY_WORDS[Number(input.value)];
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
      this.severity = SEVERITIES[Number(input.value)];
      show();
      this.onChange("control");
    });
    show();
    return make("div", { class: "row range severity" }, make("label", { class: "name", for: "severity" }, "Severity"),
      input, output);
  }

  #enableSeverity() {
    const slider = byId("severity");
    if (slider) slider.disabled = this.#graded().length === 0;
  }

  #set(name, level) {
    if (level === KEEP) this.chosen.delete(name);
    else this.chosen.set(name, level);
    if (isFinding(name)) this.#keepConsistent(name);
    this.#enableSeverity();
    this.onChange("control");
  }

  /** No finding, and a finding that is present, exclude each other: what was set last stays. */
  #keepConsistent(name) {
    const graded = this.#graded().map(([finding]) => finding);
    if (!this.chosen.has(NORMAL) || !graded.length) return;
    for (const other of name === NORMAL ? graded : [NORMAL]) {
      this.chosen.delete(other);
      const kept = document.querySelector(`[data-variable="${CSS.escape(other)}"] input[value=${KEEP}]`);
      if (kept) kept.checked = true;
    }
  }
}

/** "No finding" cannot be absent without saying what is there instead. */
function findingOptions({ name, levels }) {
  const [absent, present] = levels;
  const options = [[KEEP, "As is"], [absent, "Absent"], [present, "Present"]];
  return name === NORMAL ? [options[0], [present, "Set"]] : options;
}
