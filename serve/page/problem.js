/** How a problem is shown: what is wrong, what to do, and how to go on. */

import { make } from "./dom.js";

/**
 * Shows `problem` in `place`, a live region of role alert.
 *
 * @param {HTMLElement} place Where; it is shown.
 * @param {import("./api.js").Problem} problem What.
 * @param {(() => void)|null} retry What "Try again" does; `null` for no such button.
 */
export function showProblem(place, problem, retry = null) {
  const wait = problem.retryAfter ? `The server asks to wait ${Math.ceil(problem.retryAfter)} s.` : null;
  const reference = [problem.status ? `Status ${problem.status}` : null, problem.instance || null];
  place.replaceChildren(
    make("div", { class: "problem-text" },
      make("strong", {}, problem.title),
      problem.detail ? make("p", {}, problem.detail) : null,
      problem.remedy ? make("p", { class: "remedy" }, problem.remedy) : null,
      wait && make("p", {}, wait),
      problem.status ? make("p", { class: "reference" }, reference.filter(Boolean).join(" · ")) : null,
    ),
    make("div", { class: "problem-actions" },
      retry && make("button", { type: "button", onclick: () => { hideProblem(place); retry(); } }, "Try again"),
      make("button", { type: "button", onclick: () => hideProblem(place) }, "Dismiss"),
    ),
  );
  place.hidden = false;
}

/** Takes the problem in `place` away. */
export function hideProblem(place) {
  place.hidden = true;
  place.replaceChildren();
}
