/** Names and numbers as people read them. */

const FINDING = "finding.";
const KEPT = { no_finding: "No finding" };

/** Whether a variable is a finding, such as `finding.edema`. */
export const isFinding = (name) => name.startsWith(FINDING);

/** `finding.pleural_effusion` to "Pleural effusion", `sex=male` to "Sex: male". */
export function title(name) {
  const bare = isFinding(name) ? name.slice(FINDING.length) : name;
  if (bare in KEPT) return KEPT[bare];
  const [variable, level] = bare.replaceAll("_", " ").split("=");
  const capital = variable.charAt(0).toUpperCase() + variable.slice(1);
  return level === undefined ? capital : `${capital}: ${level}`;
}

/** A probability with two digits after the point. */
export const probability = (value) => value.toFixed(2);

/** A change with its sign; a change that rounds to nothing has none. */
export function change(value) {
  const text = Math.abs(value).toFixed(2);
  return text === "0.00" ? text : `${value > 0 ? "+" : "−"}${text}`;
}

/** Seconds with one digit after the point. */
export const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

/** Bytes as kB or MB. */
export const size = (bytes) =>
  bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** A moment as ISO 8601 text to local date and time. */
export const moment = (text) => MOMENT.format(new Date(text));

/** How long between two moments, as "3 min 20 s". */
export function duration(from, to) {
  const whole = Math.max(0, Math.round((new Date(to) - new Date(from)) / 1000));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** What a bundle or a file in storage is called: the last part of its place that says something. */
export const nameOf = (place) => {
  const parts = place.replace(/\/+$/, "").split("/");
  return (parts.at(-1) === "bundle" && parts.at(-2)) || parts.at(-1);
};
