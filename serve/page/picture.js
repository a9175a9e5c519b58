/** Grey images in the browser: decoding, window and level, and the colours of a difference. */

const MOST_PIXELS = 1024; // of an edge; what is shown is never larger

/** Where a counterfactual is brighter, and where it is darker: apart also for the colour-blind. */
const BRIGHTER = [255, 159, 67];
const DARKER = [64, 156, 255];

/**
 * A decoded image.
 *
 * @typedef {{width: number, height: number, grey: Uint8ClampedArray}} Picture Grey values 0 to 255 by rows.
 */

/**
 * Decodes an image that the browser can read.
 *
 * @param {string} address A data: or blob: address.
 * @returns {Promise<Picture>} Colours become their luma (ITU-R BT.601).
 * @throws {Error} If it is no such image.
 */
export async function decode(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const scale = Math.min(1, MOST_PIXELS / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8ClampedArray(width * height);
  for (let at = 0; at < grey.length; at += 1) {
    grey[at] = 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2];
  }
  return { width, height, grey };
}

/** The address of a PNG in base64. */
export const pngAddress = (base64) => `data:image/png;base64,${base64}`;

/**
 * Grey value to shown value: `255 ((x − level + 0.5) / (width − 1) + 0.5)`, cut to 0 to 255; a width of 256 about
 * a level of 128 changes nothing. (DICOM PS3.3, C.11.2.1.2.1, linear.)
 *
 * @param {{width: number, level: number}} window Its width and centre, in grey values.
 */
export function lookup({ width, level }) {
  const table = new Uint8ClampedArray(256);
  for (let value = 0; value < 256; value += 1) table[value] = 255 * ((value - level + 0.5) / (width - 1) + 0.5);
  return table;
}

/** The window that holds all but the darkest and brightest hundredth of a picture. */
export function automaticWindow({ grey }) {
  const counts = new Array(256).fill(0);
  for (const value of grey) counts[value] += 1;
  const quantile = (share) => {
    let seen = 0;
    return counts.findIndex((count) => (seen += count) >= share * grey.length);
  };
  const [low, high] = [quantile(0.01), quantile(0.99)];
  return { width: Math.max(8, high - low), level: Math.round((high + low) / 2) };
}

/**
 * Paints a picture through a window, with the difference on top where there is one.
 *
 * @param {HTMLCanvasElement} canvas Gets the picture's own size.
 * @param {Picture} picture What.
 * @param {Uint8ClampedArray} table From `lookup`.
 * @param {{effect: Picture, gain: number}|null} difference The effect map, 128 where nothing changed, and by how
 *     much its strength is multiplied; colours cover the picture fully at a strength of 1.
 */
export function paint(canvas, { width, height, grey }, table, difference = null) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const target = context.createImageData(width, height);
  const effect = difference && difference.effect.grey.length === grey.length ? difference.effect.grey : null;
  for (let at = 0; at < grey.length; at += 1) {
    const shown = table[grey[at]];
    const signed = effect ? (effect[at] - 128) / 127 : 0;
    const cover = effect ? Math.min(0.9, Math.abs(signed) * difference.gain) : 0;
    const colour = signed > 0 ? BRIGHTER : DARKER;
    for (let channel = 0; channel < 3; channel += 1) {
      target.data[4 * at + channel] = shown + cover * (colour[channel] - shown);
    }
    target.data[4 * at + 3] = 255;
  }
  context.putImageData(target, 0, 0);
}
