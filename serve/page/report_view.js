/** An audit's report inside the page: fetched with the key, shown in a frame that runs no scripts. */

import { text } from "./api.js";
import { make } from "./dom.js";

/** The report of one audit at a time. Its frame inherits the page's Content-Security-Policy. */
export class ReportView {
  #address = null;
  #link = null;

  /** A link that saves the report as a file; it works once the report is there. */
  downloadLink() {
    this.#link = make("a", { class: "button", hidden: true }, "Download report");
    return this.#link;
  }

  /** Lets go of the report that is shown. */
  close() {
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = this.#link = null;
  }

  /**
   * A frame that shows the report once it is fetched.
   *
   * @param {string} id Of the audit.
   * @param {(error: Error, retry: () => void) => void} onProblem
   */
  frame(id, onProblem) {
    // Same origin, so that its links can be followed from here; without allow-scripts nothing in it can run.
    const frame = make("iframe", { class: "report", title: "The audit's report", sandbox: "allow-same-origin" });
    this.#fill(frame, id, this.#link, onProblem);
    return frame;
  }

  async #fill(frame, id, link, onProblem) {
    let html;
    try {
      html = await text(`audits/${id}/report.html`);
    } catch (error) {
      onProblem(error, () => this.#fill(frame, id, link, onProblem));
      return;
    }
    if (link !== this.#link) return; // another audit is shown by now
    this.#address = URL.createObjectURL(new Blob([html], { type: "text/html" }));
    Object.assign(link, { href: this.#address, download: `audit_${id.slice(0, 8)}.html`, hidden: false });
    frame.addEventListener("load", () => scrollByLinks(frame.contentDocument), { once: true });
    frame.srcdoc = withoutScripts(html);
  }
}

function withoutScripts(html) {
  const report = new DOMParser().parseFromString(html, "text/html");
  for (const element of report.querySelectorAll("script, base, meta[http-equiv]")) element.remove();
  return `<!doctype html>${report.documentElement.outerHTML}`;
}

/** Links within a report that is written into a frame would load this page: they scroll instead. */
function scrollByLinks(report) {
  for (const link of report.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      report.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)))?.scrollIntoView();
    });
  }
}
