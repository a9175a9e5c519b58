/** Choosing the image: the server's samples, a file, or a drop. */

import { Problem } from "./api.js";
import { byId, make } from "./dom.js";
import { decode, pngAddress } from "./picture.js";
import { size } from "./words.js";

/** First bytes of a kind of file, and where they stand. */
const KINDS = [
  { kind: "PNG", mime: "image/png", at: 0, bytes: [0x89, 0x50, 0x4e, 0x47] },
  { kind: "JPEG", mime: "image/jpeg", at: 0, bytes: [0xff, 0xd8, 0xff] },
  { kind: "DICOM", mime: null, at: 128, bytes: [0x44, 0x49, 0x43, 0x4d] },
];

/**
 * @typedef {{image: string, picture: import("./picture.js").Picture|null, name: string}} Source The file in
 *     base64, decoded where the browser can, and what it is called.
 */

/** Tells `onImage` of each image that was chosen, and `onProblem` of each that cannot be. */
export class SourcePanel {
  /** @param {{onImage: (source: Source) => void, onProblem: (problem: Problem) => void}} listeners */
  constructor({ onImage, onProblem }) {
    this.onImage = onImage;
    this.onProblem = onProblem;
    const file = byId("file");
    file.addEventListener("change", () => {
      if (file.files.length) this.#take(file.files[0]);
      file.value = ""; // so that the same file can be chosen again
    });
    this.#acceptDrops(document.body);
  }

  /** Offers the server's samples. @param {{name: string, image: string}[]} samples */
  showSamples(samples) {
    const list = byId("samples");
    list.hidden = samples.length === 0;
    list.replaceChildren(...samples.map((sample) => make("button", {
      type: "button", "aria-pressed": "false", onclick: (event) => this.#takeSample(sample, event.currentTarget),
    }, make("img", { src: pngAddress(sample.image), alt: "" }), make("span", {}, sample.name))));
  }

  async #takeSample(sample, button) {
    this.#mark(button);
    byId("file-facts").hidden = true;
    const picture = await decode(pngAddress(sample.image));
    this.onImage({ image: sample.image, picture, name: sample.name });
  }

  #mark(button) {
    for (const other of byId("samples").children) other.setAttribute("aria-pressed", String(other === button));
  }

  #acceptDrops(area) {
    const drop = byId("drop");
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    area.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    area.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    area.addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      drop.classList.remove("over");
      if (event.dataTransfer.files.length) this.#take(event.dataTransfer.files[0]);
    });
  }

  /** Reads a file; kinds are told by their first bytes, since names and browsers err. */
  async #take(file) {
    const start = new Uint8Array(await file.slice(0, 132).arrayBuffer());
    const found = KINDS.find(({ at, bytes }) => bytes.every((byte, place) => start[at + place] === byte));
    if (!found) {
      this.onProblem(new Problem({
        title: "Not a PNG, JPEG or DICOM file",
        detail: `${file.name} starts like none of these.`,
        remedy: "Export the image as one of them. DICOM files need their preamble of 128 bytes.",
      }));
      return;
    }
    const image = await inBase64(file);
    let picture = null;
    if (found.mime) {
      try {
        picture = await decode(`data:${found.mime};base64,${image}`);
      } catch {
        this.onProblem(new Problem({
          title: "The image cannot be read",
          detail: `${file.name} starts like a ${found.kind} file, but could not be decoded.`,
          remedy: "The file may be damaged or incomplete; export it once more.",
        }));
        return;
      }
    }
    this.#mark(null);
    const edges = picture ? ` · ${picture.width} × ${picture.height} px` : "";
    byId("file-facts").textContent = `${file.name} · ${found.kind} · ${size(file.size)}${edges}`;
    byId("file-facts").hidden = false;
    this.onImage({ image, picture, name: file.name });
  }
}

/** @param {Blob} file @returns {Promise<string>} */
function inBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
