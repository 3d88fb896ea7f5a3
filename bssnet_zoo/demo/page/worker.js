// All work is done here, so that the page never freezes: loading, the network, labels, painting.

import { labelsOf } from "./labels.js";
import { openNetwork } from "./network.js";
import { palettePNG } from "./png.js";
import { normalise, resize, seenSize } from "./resize.js";

const FAINT = 40; // opacity, of 255, of the other classes while one is highlighted
const MAX_PIXELS = 16e6; // larger canvases fail on phones

let manifest;
let base;
let network;
let photo; // canvases of the page
let mask;
let last; // the last result: labels, their size, the model
let highlighted = -1;
let shows = 0; // pictures shown before they are segmented

function colours(model) {
  return model.classes.map(({ colour }) => [1, 3, 5].map((i) => Number.parseInt(colour.slice(i, i + 2), 16)));
}

function paint() {
  if (!last) return;
  const [height, width] = last.size;
  const table = new Uint32Array(256);
  colours(last.model).forEach(([red, green, blue], i) => {
    const alpha = highlighted < 0 || highlighted === i ? 255 : FAINT;
    table[i] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian, as all browsers' machines
  });
  const pixels = new Uint32Array(height * width);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[last.labels[i]];
  setSize(mask, last.size);
  mask.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}

function setSize(canvas, [height, width]) {
  if (canvas.height !== height || canvas.width !== width) Object.assign(canvas, { height, width });
}

function drawPhoto(picture) {
  setSize(photo, [picture.height, picture.width]);
  const context = photo.getContext("2d");
  context.clearRect(0, 0, picture.width, picture.height); // it may have transparent parts
  context.drawImage(picture, 0, 0);
}

function pixelsOf(bitmap, [height, width]) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "medium";
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

async function shrunk(bitmap) {
  const factor = Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height));
  if (factor >= 1) return bitmap;
  const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) => Math.floor(side * factor));
  return createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
}

// A picture is resized as bssnet_zoo does it and labelled at its own size, a frame as the browser does and as seen.
async function segment({ bitmap, side, moving, id }) {
  const picture = moving ? bitmap : await shrunk(bitmap);
  const size = [picture.height, picture.width];
  const seen = seenSize(...size, side);
  const rgba = moving ? pixelsOf(picture, seen) : resize(pixelsOf(picture, size), size, seen);
  const { mean, std, classes } = network.model;
  const floats = normalise(rgba, mean, std);
  const { logits, shape, milliseconds } = await network.run(floats, seen);
  const labelSize = moving ? seen : size;
  const { labels, counts } = labelsOf(logits, shape, seen, labelSize);
  last = { labels, size: labelSize, model: network.model };
  drawPhoto(picture);
  paint();
  picture.close();
  bitmap.close(); // of which the picture may be a smaller copy
  if (classes.length !== shape[0]) throw new Error(`The model has ${shape[0]} classes, the page ${classes.length}.`);
  const { backend, precision, threads } = network;
  const facts = { milliseconds, backend, precision, threads, seen, moving };
  const copy = labels.slice();
  postMessage({ type: "result", id, labels: copy, labelSize, counts, ...facts }, [copy.buffer]);
  if (network.fresh && !moving) {
    network.fresh = false; // the first run prepares memory and compiles: what counts is the second
    postMessage({ type: "timed", id, milliseconds: (await network.run(floats, seen)).milliseconds });
  }
}

async function load({ load: number, name, backend, side }) {
  const model = manifest.models.find((each) => each.name === name);
  const before = network;
  network = undefined;
  await before?.end();
  const onProgress = (loaded, total) => postMessage({ type: "progress", loaded, total });
  network = await openNetwork(manifest, model, backend, seenSize(3, 4, side), base, onProgress);
  postMessage({ type: "ready", load: number });
}

async function save({ what, strength }) {
  if (!last) return; // another picture was chosen meanwhile
  let blob;
  if (what === "labels") {
    blob = await palettePNG(last.labels, last.size, colours(last.model));
  } else {
    const canvas = new OffscreenCanvas(photo.width, photo.height);
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0);
    context.globalAlpha = strength;
    context.drawImage(mask, 0, 0, canvas.width, canvas.height);
    blob = await canvas.convertToBlob({ type: "image/png" });
  }
  postMessage({ type: "saved", what, blob });
}

const actions = {
  start(message) {
    ({ manifest, base, photo, mask } = message);
  },
  async show({ bitmap }) {
    const show = ++shows;
    last = undefined;
    setSize(mask, [1, 1]);
    mask.getContext("2d").clearRect(0, 0, 1, 1);
    const picture = await shrunk(bitmap);
    if (show === shows && !last) drawPhoto(picture);
    picture.close();
    bitmap.close();
  },
  load,
  segment,
  save,
  highlight({ index }) {
    highlighted = index;
    paint();
  },
};

const AT_ONCE = ["start", "show", "highlight"];
let turn = Promise.resolve(); // the others one after the other: a session is not re-entrant

function report({ type: during, load, id }, error) {
  console.error(error);
  const message = error.message || String(error);
  postMessage({ type: "problem", during, load, id, backend: error.backend, message });
}

addEventListener("message", ({ data }) => {
  const act = async () => actions[data.type](data);
  const done = AT_ONCE.includes(data.type) ? act() : turn.then(act);
  const settled = done.catch((error) => report(data, error));
  if (!AT_ONCE.includes(data.type)) turn = settled;
});
