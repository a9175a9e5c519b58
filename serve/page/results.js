/** What is said about a counterfactual: the judges' scores, what they read, and where it comes from. */

import { byId, make, pairs } from "./dom.js";
import { change, moment, probability, title } from "./words.js";

/** Takes all results away. */
export function clearResults() {
  byId("scores").replaceChildren();
  byId("scores-hint").hidden = false;
  for (const name of ["inferred", "provenance"]) byId(name).hidden = true;
}

/**
 * Shows the results of one image of an answer.
 *
 * @param {object} answer A CounterfactualAnswer of the API.
 * @param {object} image Its MadeImage that is chosen.
 * @param {Set<string>} targets What was asked for, as scores name it: it comes first.
 */
export function showResults(answer, image, targets) {
  const judges = new Map();
  for (const score of image.scores) judges.set(score.judge, [...(judges.get(score.judge) ?? []), score]);
  byId("scores").replaceChildren(...[...judges].map(([judge, scores]) => judgeTable(judge, scores, targets)));
  byId("scores-hint").hidden = judges.size > 0;
  showInferred(answer.inferred);
  showProvenance(answer, image);
}

function judgeTable(judge, scores, targets) {
  const weight = (score) => (targets.has(score.name) ? 2 : 0) + Math.abs(score.after - score.before);
  const ordered = [...scores].sort((one, other) => weight(other) - weight(one));
  return make("table", { class: "scores" },
    make("caption", {}, judge),
    make("thead", {}, make("tr", {}, ...["Shows", "Before", "After", "Change"].map((name) =>
      make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...ordered.map((score) => scoreRow(score, targets.has(score.name)))),
  );
}

function scoreRow({ name, before, after }, asked) {
  return make("tr", { "data-score": name },
    make("th", { scope: "row" }, title(name), asked ? make("em", { class: "asked" }, "asked") : null,
      make("span", { class: "bars", "aria-hidden": "true" }, bar("before", before), bar("after", after))),
    make("td", {}, probability(before)),
    make("td", { class: "after" }, probability(after)),
    make("td", { class: "change" }, change(after - before)),
  );
}

function bar(kind, value) {
  const filled = make("i", { class: kind });
  filled.style.width = `${100 * value}%`;
  return make("span", {}, filled);
}

function showInferred(inferred) {
  const items = Object.entries(inferred).map(([name, value]) =>
    [title(name), typeof value === "number" ? probability(value) : value]);
  byId("inferred").hidden = items.length === 0;
  byId("inferred").replaceChildren(make("h3", {}, "Read from the input"), pairs(items));
}

function showProvenance({ provenance, expires }, image) {
  const { model, stage, checksum, code_version: version, device } = provenance;
  byId("provenance").hidden = false;
  byId("provenance").replaceChildren(make("h3", {}, "Provenance"), pairs([
    ["Kind", make("span", { class: "badge warn" }, "Synthetic: shows no examination")],
    ["Model", `${model} (${stage})`],
    ["Checksum", make("code", { title: checksum, tabindex: 0, "aria-label": checksum }, checksum.slice(0, 16))],
    ["Seed", String(image.seed)],
    ["Computed on", device],
    ["Server", version],
    ...(expires ? [["Noise kept until", moment(expires)]] : []),
  ]));
}
