/** The dark area: input, counterfactual and difference, with swipe, window and level, and seeds. */

import { byId, make } from "./dom.js";
import { automaticWindow, decode, lookup, paint, pngAddress } from "./picture.js";

const FULL = { width: 256, level: 128 };

/**
 * @typedef {{input: import("./picture.js").Picture|null, made: Made[], chosen: number}} Shown
 * @typedef {{seed: number, picture: import("./picture.js").Picture, effect: import("./picture.js").Picture,
 *     message: object}} Made One counterfactual: its message from the API, and its pictures, decoded.
 */

/** Shows pictures and tells `onChoose` which counterfactual was chosen, by its place. */
export class Viewer {
  /** @param {{onChoose: (place: number) => void}} listeners */
  constructor({ onChoose }) {
    this.onChoose = onChoose;
    this.window = { ...FULL };
    /** @type {Shown} */
    this.shown = { input: null, made: [], chosen: 0 };
    this.#wire();
    this.#place(50);
    this.#draw();
  }

  /** Shows an input alone; `null` where it cannot be shown before the server has read it. */
  showInput(picture, hint) {
    this.shown = { input: picture, made: [], chosen: 0 };
    byId("stage-hint").textContent = hint;
    this.#draw();
  }

  /**
   * Decodes and shows an answer.
   *
   * @param {object} answer A CounterfactualAnswer of the API.
   * @param {() => boolean} isLatest Whether it is still wanted once it is decoded.
   */
  async showAnswer(answer, isLatest) {
    const input = await decode(pngAddress(answer.input));
    const made = await Promise.all(answer.images.map(async (message) => ({
      seed: message.seed,
      message,
      picture: await decode(pngAddress(message.image)),
      effect: await decode(pngAddress(message.effect)),
    })));
    if (!isLatest()) return;
    const seed = this.shown.made[this.shown.chosen]?.seed;
    const same = made.findIndex((one) => one.seed === seed);
    this.shown = { input, made, chosen: Math.max(0, same) };
    this.#draw();
    this.onChoose(this.shown.chosen);
  }

  #wire() {
    for (const radio of document.getElementsByName("layout")) radio.addEventListener("change", () => this.#draw());
    byId("overlay").addEventListener("change", () => this.#draw());
    byId("gain").addEventListener("input", () => this.#draw());
    byId("swipe").addEventListener("input", (event) => this.#place(Number(event.target.value)));
    for (const name of ["width", "level"]) {
      byId(name).addEventListener("input", (event) => {
        this.#setWindow({ ...this.window, [name]: Number(event.target.value) });
      });
    }
    byId("window-reset").addEventListener("click", () => this.#setWindow(FULL));
    byId("window-auto").addEventListener("click", () => {
      if (this.shown.input) this.#setWindow(automaticWindow(this.shown.input));
    });
    for (const frame of document.querySelectorAll(".frame")) this.#windowByDragging(frame);
  }

  /** Side by side, dragging sets the window as on a workstation: across its width, down its level. */
  #windowByDragging(frame) {
    frame.addEventListener("pointerdown", (down) => {
      if (down.button !== 0 || this.#layout() !== "beside") return;
      const start = { ...this.window };
      frame.setPointerCapture(down.pointerId);
      const move = (event) => this.#setWindow({
        width: Math.min(256, Math.max(8, Math.round(start.width + event.clientX - down.clientX))),
        level: Math.min(255, Math.max(0, Math.round(start.level + event.clientY - down.clientY))),
      });
      frame.addEventListener("pointermove", move);
      const end = () => frame.removeEventListener("pointermove", move);
      frame.addEventListener("pointerup", end, { once: true });
      frame.addEventListener("pointercancel", end, { once: true });
    });
  }

  #layout() {
    return document.querySelector("input[name=layout]:checked").value;
  }

  #setWindow(window) {
    this.window = { ...window };
    for (const name of ["width", "level"]) {
      byId(name).value = String(window[name]);
      document.querySelector(`output[for=${name}]`).textContent = String(window[name]);
    }
    this.#draw();
  }

  /** Puts the boundary at `share` per cent of the width: input on its left, counterfactual on its right. */
  #place(share) {
    byId("stage").style.setProperty("--boundary", `${share}%`);
    byId("swipe").setAttribute("aria-valuetext", `${share} % input, ${100 - share} % counterfactual`);
  }

  #draw() {
    const { input, made, chosen } = this.shown;
    const stage = byId("stage");
    const layout = this.#layout();
    const gain = Number(byId("gain").value);
    const difference = byId("overlay").checked;
    stage.dataset.layout = layout;
    stage.dataset.shows = made.length ? "answer" : input ? "input" : "nothing";
    stage.dataset.difference = String(layout === "beside" || difference);
    byId("gain-field").hidden = !(layout === "beside" || difference);
    document.querySelector("output[for=gain]").textContent = `×${gain}`;
    const table = lookup(this.window);
    const canvas = (name) => byId(`frame-${name}`).querySelector("canvas");
    if (input) paint(canvas("input"), input, table);
    if (made.length) {
      const { picture, effect } = made[chosen];
      const over = { effect, gain };
      paint(canvas("made"), picture, table, layout === "swipe" && difference ? over : null);
      paint(canvas("difference"), input, table, over);
    }
    this.#drawSeeds(table);
  }

  #drawSeeds(table) {
    const { made, chosen } = this.shown;
    const strip = byId("seeds");
    strip.hidden = made.length < 2;
    if (strip.children.length !== made.length) {
      strip.replaceChildren(...made.map((_, place) => make("button", {
        type: "button", onclick: () => this.#choose(place),
      }, make("canvas", { "aria-hidden": "true" }), make("span", {}), make("em", {}, "Synthetic"))));
    }
    if (strip.hidden) return;
    made.forEach(({ seed, picture }, place) => {
      const button = strip.children[place];
      button.setAttribute("aria-pressed", String(place === chosen));
      button.querySelector("span").textContent = `Seed ${seed}`;
      paint(button.querySelector("canvas"), picture, table);
    });
  }

  #choose(place) {
    this.shown.chosen = place;
    this.#draw();
    this.onChoose(place);
  }
}
