/** The first tab: from an image and an intervention to counterfactuals, and on to the next intervention. */

import { json, Problem } from "./api.js";
import { Latest } from "./asking.js";
import { announce, byId, make } from "./dom.js";
import { InterventionPanel } from "./intervention.js";
import { readKnown, showKnown } from "./known.js";
import { pngAddress } from "./picture.js";
import { hideProblem, showProblem } from "./problem.js";
import { clearResults, showResults } from "./results.js";
import { SourcePanel } from "./source.js";
import { Viewer } from "./viewer.js";
import { seconds } from "./words.js";

const PAUSE = 250; // ms that a control has to rest before the server is asked
const FORGOTTEN = [404, 410]; // statuses of noise that the server no longer keeps

/** Everything on the tab, and what it knows. */
export class Workspace {
  constructor() {
    this.models = [];
    this.source = null;
    this.noise = null; // identifier of the abducted noise of this image under this model
    this.answer = null;
    this.targets = new Set();
    this.moved = false; // a control moved while the server abducted
    this.latest = new Latest();
    this.viewer = new Viewer({ onChoose: (place) => this.#showChosen(place) });
    this.panel = new InterventionPanel({
      onChange: (how) => this.#changed(how),
      onGenerate: () => this.#ask(),
    });
    this.sourcePanel = new SourcePanel({
      onImage: (source) => this.#takeImage(source),
      onProblem: (problem) => this.#fail(problem, null),
    });
    byId("model").addEventListener("change", () => this.#takeModel());
    byId("cancel").addEventListener("click", () => this.#cancel());
    this.#tell();
  }

  /** Asks the server for its models and samples. */
  async load() {
    hideProblem(byId("problem"));
    try {
      const [{ models }, samples] = await Promise.all([json("models"), json("samples")]);
      this.models = models;
      this.sourcePanel.showSamples(samples);
    } catch (error) {
      if (error.status !== 401) this.#fail(error, () => this.load());
      return;
    }
    const before = byId("model").value;
    byId("model").replaceChildren(...this.models.map(({ name }) => make("option", { value: name }, name)));
    if (this.models.some(({ name }) => name === before)) byId("model").value = before;
    this.#takeModel();
  }

  get #card() {
    return this.models.find(({ name }) => name === byId("model").value);
  }

  #takeModel() {
    const card = this.#card;
    if (!card) {
      byId("model-facts").textContent = "The server has no models. Name a bundle in its configuration.";
      return;
    }
    byId("model-facts").textContent = [
      card.stage, `${card.image_size} px`, card.seeded ? "samples" : "deterministic",
      card.loaded ? "loaded" : "not loaded: the first request waits",
    ].join(" · ");
    this.panel.showModel(card);
    showKnown(card, () => this.#restart());
    this.#restart();
  }

  #takeImage(source) {
    this.source = source;
    this.#restart();
    byId("stage").scrollIntoView({ block: "nearest" });
    announce(`Image: ${source.name}`);
  }

  /** After another image, model or known attribute: what was abducted and made is of no use any more. */
  #restart() {
    this.#forget();
    hideProblem(byId("problem"));
    if (!this.source) return;
    const hint = this.source.picture ? "" : "The server reads DICOM files; the image shows with the first answer.";
    this.viewer.showInput(this.source.picture, hint);
    this.#tell();
  }

  #forget() {
    this.latest.stop();
    this.#end();
    this.noise = null;
    this.answer = null;
    byId("stage").dataset.stale = "false";
    this.#showDownloads(null);
    clearResults();
    this.#say("Ready.");
  }

  #changed(how) {
    this.#tell();
    if (this.answer) byId("stage").dataset.stale = "true";
    if (how === "words") return;
    this.moved = this.latest.busy;
    if (!this.noise) return; // an abduction that runs is not thrown away: #ask goes on from it
    this.latest.stop();
    this.#end();
    if (this.panel.read()) this.latest.later(() => this.#ask(), PAUSE);
    else this.#showNothingAsked();
  }

  /** With every control back to "as is", the counterfactual is the image itself: nothing is asked. */
  #showNothingAsked() {
    this.latest.stop();
    this.#end();
    if (this.answer) this.#showInputOf(this.answer);
    this.#say("Nothing is to change.");
  }

  async #showInputOf(answer) {
    this.answer = null;
    byId("stage").dataset.stale = "false";
    this.#showDownloads(null);
    clearResults();
    await this.viewer.showAnswer({ ...answer, images: [] }, () => true);
  }

  /** Says what is missing before the server can be asked. */
  #tell() {
    const missing = !this.source ? "Choose an image first."
      : !this.panel.read() ? "Set a variable, or say what the image should show."
      : this.noise ? "Changes are shown as you make them." : "";
    byId("ask-hint").textContent = missing;
  }

  async #ask() {
    const asked = this.panel.read();
    if (!this.source || !asked) {
      this.#tell();
      announce(byId("ask-hint").textContent);
      return;
    }
    hideProblem(byId("problem"));
    const targets = this.panel.targets();
    const began = performance.now();
    this.moved = false;
    this.#begin(began);
    const { latest, error } = await this.latest.run(async (signal, isLatest) => {
      const answer = await this.#request(asked, signal);
      if (!isLatest()) return;
      this.noise = answer.noise_id;
      if (this.moved && this.noise) return;
      this.answer = answer;
      this.targets = targets;
      await this.viewer.showAnswer(answer, isLatest);
      if (isLatest()) byId("stage").dataset.stale = "false";
    });
    if (!latest) return;
    this.#end();
    if (!error && this.moved && this.noise) {
      this.#changed("control");
      return;
    }
    if (error) {
      this.#say("No counterfactual was made.");
      this.#fail(error, () => this.#ask());
      return;
    }
    const made = asked.seeds.length > 1 ? `${asked.seeds.length} counterfactuals` : "Counterfactual";
    this.#say(`${made} in ${seconds(performance.now() - began)}.`);
    announce(byId("status-text").textContent);
    this.#tell();
  }

  /** By the noise where the server keeps it, so that nothing is abducted again; else with the image. */
  async #request(asked, signal) {
    if (this.noise) {
      try {
        return await json(`counterfactuals/${this.noise}`, { method: "POST", body: asked, signal });
      } catch (error) {
        if (!FORGOTTEN.includes(error.status)) throw error;
        this.noise = null;
        this.#say("The server had forgotten this image; it is sent again.");
      }
    }
    const body = { ...asked, model: this.#card.name, image: this.source.image, observed: readKnown() };
    return json("counterfactuals", { method: "POST", body, signal });
  }

  #cancel() {
    this.latest.stop();
    this.#end();
    this.#say("Cancelled.");
    announce("Cancelled.");
    byId("generate").focus();
  }

  #begin(began) {
    byId("viewer").setAttribute("aria-busy", "true");
    byId("progress").hidden = byId("cancel").hidden = false;
    const loading = this.#card.loaded ? "" : " The model is loaded first.";
    this.#say(this.noise ? "Predicting…" : `Abducting and predicting…${loading}`);
    announce("Working.");
    clearInterval(this.clock);
    this.clock = setInterval(() => {
      byId("elapsed").textContent = seconds(performance.now() - began);
    }, 100);
  }

  #end() {
    clearInterval(this.clock);
    byId("elapsed").textContent = "";
    byId("viewer").setAttribute("aria-busy", "false");
    byId("progress").hidden = byId("cancel").hidden = true;
  }

  #say(text) {
    byId("status-text").textContent = text;
  }

  #fail(error, retry) {
    if (!(error instanceof Problem)) {
      // A fault of this page or an image that cannot be decoded: shown, and left for the console as well.
      console.error(error);
      error = new Problem({
        title: "The page could not show the answer",
        detail: error.message,
        remedy: "Reload the page. If it stays so, tell whoever runs this server.",
      });
    }
    showProblem(byId("problem"), error, retry);
    byId("problem").scrollIntoView({ block: "nearest" });
  }

  #showChosen(place) {
    if (!this.answer?.images.length) return;
    const image = this.answer.images[place];
    showResults(this.answer, image, this.targets);
    this.#showDownloads(image);
  }

  /** The server's own files, with the mark of being synthetic that is in their text chunks. */
  #showDownloads(image) {
    for (const [id, field] of [["download", "image"], ["download-effect", "effect"]]) {
      const link = byId(id);
      link.hidden = image === null;
      if (image === null) continue;
      link.href = pngAddress(image[field]);
      link.download = `synthetic_${this.answer.provenance.model}_seed${image.seed}${field === "effect" ? "_effect" : ""}.png`;
    }
  }
}
