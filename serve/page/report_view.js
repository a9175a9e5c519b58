/** An audit's report inside the page: fetched with the key, shown in a frame that runs no scripts. */

import { text } from "./api.js";
import { make } from "./dom.js";

/**
 * The report of one audit at a time.
 *
 * The frame's document inherits the page's Content-Security-Policy, which refuses styles that stand in markup. So
 * the report's styles are taken out of its text and applied through the CSSOM, which the policy allows.
 */
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
    // Same origin, so that its styles can be set from here; without allow-scripts nothing in it can run.
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
    const { markup, sheets, styles } = withoutStyles(html);
    frame.addEventListener("load", () => applyStyles(frame, sheets, styles), { once: true });
    frame.srcdoc = markup;
  }
}

/** A report's markup without styles, its style sheets, and the inline styles by place. */
function withoutStyles(html) {
  const report = new DOMParser().parseFromString(html, "text/html");
  const sheets = [...report.querySelectorAll("style")].map((style) => style.textContent);
  for (const element of report.querySelectorAll("style, script, base, meta[http-equiv]")) element.remove();
  const styles = [...report.querySelectorAll("[style]")].map((element, place) => {
    const style = element.getAttribute("style");
    element.removeAttribute("style");
    element.dataset.style = String(place);
    return style;
  });
  return { markup: `<!doctype html>${report.documentElement.outerHTML}`, sheets, styles };
}

function applyStyles(frame, sheets, styles) {
  const { contentDocument: report, contentWindow: view } = frame;
  report.adoptedStyleSheets = sheets.map((css) => {
    const sheet = new view.CSSStyleSheet();
    sheet.replaceSync(css);
    return sheet;
  });
  for (const element of report.querySelectorAll("[data-style]")) {
    element.style.cssText = styles[Number(element.dataset.style)];
  }
  // Links within a report that is written into a frame would load this page: they scroll instead.
  for (const link of report.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      report.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)))?.scrollIntoView();
    });
  }
}
