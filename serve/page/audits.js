/** The second tab: the audits of this server, one of them in full, and a new one. */

import { done, json, Problem } from "./api.js";
import { AuditForm } from "./audit_form.js";
import { announce, byId, confirmed, make, pairs } from "./dom.js";
import { hideProblem, showProblem } from "./problem.js";
import { ReportView } from "./report_view.js";
import { duration, nameOf, moment, title } from "./words.js";

const POLL = 3000; // ms between looks at audits that are not over
const ACTIVE = ["queued", "running"];

/** Verdict to its words and its tone; see counterray.audits.verdicts. */
const VERDICTS = {
  depends: ["Depends on it", "bad"],
  cannot_tell: ["Cannot tell", "warn"],
  inconclusive: ["Inconclusive", "plain"],
  invariant: ["Invariant within the margins", "good"],
};
const STATES = { queued: "plain", running: "live", succeeded: "good", failed: "bad", stopped: "warn" };

const badge = (text, tone) => make("span", { class: `badge ${tone}` }, text);

/** The list, and the detail beside it. */
export class AuditsTab {
  /** @param {{models: () => object[]}} workspace Gives the cards of the server's models. */
  constructor({ models }) {
    this.audits = [];
    this.chosen = null;
    this.visible = false;
    this.report = new ReportView();
    this.form = new AuditForm({
      models,
      onStart: (request) => this.#start(request),
      onCancel: () => this.#showDetail(),
    });
    byId("audit-new").addEventListener("click", () => this.#showForm());
  }

  /** Shows or hides the tab; audits are polled only while it shows. */
  show(visible) {
    this.visible = visible;
    clearTimeout(this.timer);
    if (visible) this.reload();
  }

  /** Asks for the list again, and once more after a while if something is not over. */
  async reload() {
    if (!this.visible) return;
    clearTimeout(this.timer);
    try {
      const { audits } = await json("audits");
      hideProblem(byId("audit-problem"));
      this.#take(audits);
    } catch (error) {
      this.#fail(error, () => this.reload());
      return;
    }
    if (this.visible && this.audits.some(({ state }) => ACTIVE.includes(state))) {
      this.timer = setTimeout(() => this.reload(), POLL);
    }
  }

  #take(audits) {
    const before = new Map(this.audits.map(({ id, state }) => [id, state]));
    const changed = audits.filter(({ id, state }) => before.has(id) && before.get(id) !== state);
    for (const { state, request } of changed) announce(`Audit of ${names(request)}: ${state}.`);
    this.audits = audits;
    this.#drawList();
    const current = this.#current;
    if (!byId("audit-form").hidden) return;
    if (!current || changed.includes(current) || !byId("audit-body").dataset.audit) this.#showDetail();
  }

  get #current() {
    return this.audits.find(({ id }) => id === this.chosen);
  }

  #drawList() {
    const focused = document.activeElement?.dataset?.audit;
    byId("audits-hint").textContent = this.audits.length ? "" : "None yet on this server.";
    byId("audit-items").replaceChildren(...this.audits.map((audit) => make("li", {}, make("button", {
      type: "button", "data-audit": audit.id, "aria-current": audit.id === this.chosen ? "true" : null,
      onclick: () => this.#choose(audit.id),
    },
    make("span", { class: "line" }, make("strong", {}, names(audit.request)), badge(audit.state, STATES[audit.state])),
    make("span", { class: "line facts" }, audit.request.attributes.join(", "), make("time", {}, moment(audit.created)))))));
    if (focused) byId("audit-items").querySelector(`[data-audit="${focused}"]`)?.focus();
  }

  #choose(id) {
    this.chosen = id;
    this.#drawList();
    this.#showDetail();
    byId("audit-items").querySelector(`[data-audit="${id}"]`)?.focus();
    if (matchMedia("(max-width: 60rem)").matches) byId("audit-detail").scrollIntoView();
  }

  #showForm() {
    byId("audit-body").hidden = true;
    byId("audit-heading").textContent = "New audit";
    this.form.open();
  }

  #showDetail() {
    this.form.close();
    const body = byId("audit-body");
    body.hidden = false;
    const audit = this.#current;
    body.dataset.audit = audit?.id ?? "";
    this.report.close();
    byId("audit-heading").textContent = audit ? names(audit.request) : "No audit chosen";
    if (!audit) {
      body.replaceChildren(make("p", { class: "facts" }, "Choose an audit on the list, or start one."));
      return;
    }
    const over = !ACTIVE.includes(audit.state);
    body.replaceChildren(...[
      make("div", { class: "actions" },
        badge(audit.state, STATES[audit.state]),
        audit.state === "succeeded" ? this.report.downloadLink() : null,
        make("button", { type: "button", onclick: () => this.#remove(audit) }, over ? "Delete" : "Stop")),
      audit.message ? make("p", { class: "problem" }, audit.message) : null,
      facts(audit),
      Object.keys(audit.verdicts).length ? verdictTable(audit.verdicts) : null,
      audit.state === "succeeded" ? this.report.frame(audit.id, (error, retry) => this.#fail(error, retry)) : null,
    ].filter(Boolean));
  }

  async #start(request) {
    try {
      const audit = await json("audits", { method: "POST", body: request });
      this.chosen = audit.id;
      this.form.close();
      announce("The audit was handed in.");
    } catch (error) {
      this.#fail(error, null);
      return;
    }
    await this.reload();
    this.#showDetail();
    byId("audit-detail").focus();
  }

  async #remove(audit) {
    const over = !ACTIVE.includes(audit.state);
    const yes = await confirmed(over
      ? { title: "Delete this audit?", text: "Its report is deleted with it.", yes: "Delete" }
      : { title: "Stop this audit?", text: "What it has computed so far is lost.", yes: "Stop" });
    if (!yes) return;
    try {
      await done(`audits/${audit.id}`, { method: "DELETE" });
    } catch (error) {
      this.#fail(error, null);
      return;
    }
    announce(over ? "Deleted." : "Stopped.");
    await this.reload();
    this.#showDetail();
  }

  #fail(error, retry) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 401) showProblem(byId("audit-problem"), error, retry);
  }
}

/** What the classifiers of a request are called. */
const names = ({ classifiers }) => classifiers.map(nameOf).join(", ");

function facts({ id, created, finished, request }) {
  return pairs([
    ["Classifiers", make("span", { class: "lines" }, request.classifiers.join("\n"))],
    ["Generator", request.generator],
    ["Dataset", request.data],
    ["Attributes", request.attributes.map(title).join(", ")],
    ["Studies", request.studies === null ? "all of the split" : String(request.studies)],
    ["Asked for", moment(created)],
    ...(finished ? [["Took", duration(created, finished)]] : []),
    ["Identifier", make("code", {}, id)],
  ]);
}

function verdictTable(verdicts) {
  const rows = Object.entries(verdicts).flatMap(([attribute, targets]) =>
    Object.entries(targets).map(([target, verdict]) => {
      const [text, tone] = VERDICTS[verdict] ?? [verdict, "plain"];
      return make("tr", {}, make("th", { scope: "row" }, target), make("td", {}, title(attribute)),
        make("td", {}, badge(text, tone)));
    }));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Verdicts" },
    make("table", { class: "verdicts" },
      make("caption", {}, "Verdicts"),
      make("thead", {}, make("tr", {}, ...["Classifier and finding", "Attribute", "Verdict"].map((name) =>
        make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows)));
}
