// The page: what is asked for goes to the worker, what comes back is shown.

import { Legend } from "./legend.js";
import { Moving, readPicture } from "./source.js";

const $ = (id) => document.getElementById(id);
const worker = startWorker();
const legend = new Legend($("legend"), (index) => send({ type: "highlight", index }));
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e6 ? 1 : 0);

let manifest;
let model; // the one chosen
let ready = false; // the network is there
let missing = ""; // why it isn't
let current; // {name, blob}, or a Moving
let result; // the last one
let loads = 0; // number of the network asked for last
let opening = 0; // number of what was chosen last
let number = 0; // of what was sent last
let busy = false; // a frame is being segmented
let times = []; // when the last frames were done

// From a blob, as only such a worker is bound by the page's content security policy.
function startWorker() {
  const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  return new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
}

function send(message, transfer = []) {
  worker.postMessage(message, transfer);
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

// --- the network

function describeLoading(text, value) {
  $("loading").hidden = text === null;
  $("loading-text").textContent = text ?? "";
  if (value === undefined) $("progress").removeAttribute("value");
  else $("progress").value = value;
}

function loadNetwork() {
  ready = busy = false;
  missing = "";
  complain(missing);
  forgetResult();
  model = manifest.models.find(({ name }) => name === $("model").value);
  fillSizes();
  legend.setClasses(model.classes);
  describeLoading(`Loading ${model.name}`, 0);
  send({ type: "load", load: ++loads, name: model.name, backend: $("backend").value, side: side() });
}

// What is shown or on its way belongs to another model or picture from now on.
function forgetResult() {
  result = undefined;
  number++;
  $("save-labels").disabled = $("save-overlay").disabled = true;
  $("under").hidden = $("facts").hidden = true;
}

function side() {
  return Number($("size").value);
}

function fillSizes() {
  const before = side();
  const chosen = model.sizes.includes(before) ? before : model.size;
  const options = model.sizes.map((pixels) => {
    const note = pixels === model.trained_size ? ", as trained" : "";
    return new Option(`${pixels} px${note}`, pixels, false, pixels === chosen);
  });
  $("size").replaceChildren(...options);
}

// --- pictures

async function segmentCurrent() {
  if (!ready || !current) return;
  const asked = current;
  try {
    const bitmap = await (asked instanceof Moving ? asked.frame() : readPicture(asked.blob));
    if (asked !== current || !ready) {
      bitmap.close();
      return;
    }
    send({ type: "segment", bitmap, side: side(), moving: false, id: ++number }, [bitmap]);
  } catch (error) {
    complain(error.message);
  }
}

function isFrameWanted() {
  if (!ready || busy) return false;
  busy = true;
  return true;
}

function segmentFrame(moving, bitmap) {
  if (moving !== current || !ready) {
    bitmap?.close();
  } else if (bitmap) {
    send({ type: "segment", bitmap, side: side(), moving: true, id: ++number }, [bitmap]);
  } else {
    busy = false;
  }
}

function leaveCurrent() {
  forgetResult();
  if (current instanceof Moving) current.end();
  busy = false;
  times = [];
  complain(missing);
  for (const button of $("samples").querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
}

function showMovingButtons() {
  const moving = current instanceof Moving;
  $("pause").hidden = $("stop").hidden = !moving;
  $("pause").textContent = moving && current.paused ? "Go on" : "Pause";
}

async function openPicture(blob, name, turn) {
  const bitmap = await readPicture(blob);
  if (turn !== opening) return; // something else was chosen meanwhile
  leaveCurrent();
  current = { name, blob };
  showMovingButtons();
  send({ type: "show", bitmap }, [bitmap]);
  if (ready) segmentCurrent();
  else if (!model) loadNetwork();
}

async function openMoving(name, turn, open) {
  const isWanted = () => moving === current && isFrameWanted();
  const moving = new Moving(name, isWanted, (bitmap) => segmentFrame(moving, bitmap));
  moving.onchange = () => moving === current && !moving.ended && showMovingButtons();
  moving.onlost = () => moving === current && stopMoving("The camera is gone.");
  try {
    await open(moving);
  } catch (error) {
    moving.end();
    throw error;
  }
  if (turn !== opening) {
    moving.end();
    return;
  }
  leaveCurrent();
  current = moving;
  showMovingButtons();
  if (!model) loadNetwork();
}

function stopMoving(message = missing) {
  current.end();
  $("pause").hidden = $("stop").hidden = true;
  complain(message);
}

async function openFile(file) {
  const name = file.name || "pasted";
  const turn = ++opening;
  try {
    if (file.type.startsWith("video/")) throw new Error("It would be read as a whole, to see that it is no picture.");
    await openPicture(file, name, turn);
  } catch {
    try {
      await openMoving(name, turn, (moving) => moving.openFile(file));
    } catch {
      if (turn !== opening) return;
      complain(`${name} is not a picture or a video that this browser can read.`);
    }
  }
}

async function openCamera() {
  try {
    await openMoving("camera", ++opening, (moving) => moving.openCamera());
  } catch (error) {
    const reasons = {
      NotAllowedError: "The camera was not allowed: change that beside the page's address.",
      NotFoundError: "There is no camera.",
      NotReadableError: "The camera is in use by another program.",
    };
    complain(reasons[error.name] ?? error.message);
  }
}

async function openSample(button) {
  const name = button.dataset.sample;
  const turn = ++opening;
  try {
    const response = await fetch(`samples/${name}.jpg`);
    if (!response.ok) throw new Error(`samples/${name}.jpg is missing.`);
    await openPicture(await response.blob(), `${name}.jpg`, turn);
    if (turn !== opening) return;
    button.setAttribute("aria-pressed", "true");
  } catch (error) {
    complain(error.message);
  }
}

// --- results

function framesPerSecond() {
  const now = performance.now();
  times = [...times.filter((time) => now - time < 3000), now];
  return times.length > 1 ? (1000 * (times.length - 1)) / (now - times[0]) : 0;
}

function showFacts() {
  const { milliseconds, moving, backend, precision, threads, seen } = result;
  const fps = moving ? framesPerSecond() : 0;
  const where = backend === "webgpu" ? "GPU" : `CPU, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  const speed = [`${milliseconds.toFixed(0)} ms`, fps ? `${fps.toFixed(1)} FPS` : ""];
  const parts = [...speed, where, precision, `${seen[0]} × ${seen[1]}`];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
  $("facts").hidden = false;
}

const received = {
  progress({ loaded, total }) {
    const [done, all] = [megabytes(loaded), megabytes(total)];
    if (loaded < total) describeLoading(`Loading ${model.name}: ${done} of ${all} MB`, loaded / total);
    else describeLoading("Preparing the network");
  },

  ready({ load }) {
    if (load !== loads) return;
    ready = true;
    describeLoading(null);
    segmentCurrent();
  },

  result(message) {
    if (message.moving) busy = false;
    if (message.id !== number || !ready) return; // another one is on its way
    result = message;
    const shares = legend.setCounts(message.counts, !message.moving);
    showFacts();
    if (shares) $("status").textContent = `Segmented: ${shares.join(", ")}`;
    $("photo").setAttribute("aria-label", `${current.name} with the classes in colour`);
    $("save-labels").disabled = $("save-overlay").disabled = false;
    $("view").dataset.done = message.id; // for tests
  },

  timed({ id, milliseconds }) {
    if (result?.id !== id) return;
    result.milliseconds = milliseconds;
    showFacts();
  },

  saved({ what, blob }) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${current.name.replace(/\.[^.]*$/, "")}_${what}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },

  problem({ during, load, backend, message }) {
    busy = false;
    if (during === "load" && load !== loads) return; // another one is on its way
    if (during === "segment" && !ready) return; // the network that it asked is gone
    if (during === "segment" && backend === "webgpu" && $("backend").value === "auto") {
      $("backend").value = "wasm";
      loadNetwork();
      complain("The GPU failed: the CPU takes over.");
      return;
    }
    complain(message);
    if (during !== "load") return;
    missing = message;
    describeLoading(null);
  },
};

worker.onmessage = ({ data }) => received[data.type](data);
worker.onerror = () =>
  complain("The page's worker can't be started: a file of this page is missing or the browser is too old.");

// --- the class under the pointer

function classAt(event) {
  if (!result) return -1;
  const box = $("photo").getBoundingClientRect();
  const [height, width] = result.labelSize;
  const scale = Math.min(box.width / width, box.height / height); // the canvas is fitted into its box
  const x = Math.floor((event.clientX - box.left - (box.width - width * scale) / 2) / scale);
  const y = Math.floor((event.clientY - box.top - (box.height - height * scale) / 2) / scale);
  return x < 0 || y < 0 || x >= width || y >= height ? -1 : result.labels[y * width + x];
}

function point(event) {
  const index = event.type === "pointerleave" ? -1 : classAt(event);
  const tip = $("under");
  legend.mark(index);
  tip.hidden = index < 0;
  if (index < 0) return;
  tip.textContent = model.classes[index]?.name ?? "";
  const box = $("view").getBoundingClientRect();
  const x = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
  const y = Math.max(event.clientY - box.top - 34, 4);
  tip.style.transform = `translate(${x}px, ${y}px)`;
}

// --- controls

function listen() {
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) openFile($("file").files[0]);
    $("file").value = "";
  });
  $("camera").addEventListener("click", openCamera);
  $("pause").addEventListener("click", async () => {
    if (await current.toggle()) segmentCurrent(); // once more, at its own size
    showMovingButtons();
  });
  $("stop").addEventListener("click", () => {
    stopMoving();
    $("camera").focus();
  });
  for (const button of $("samples").querySelectorAll("button")) {
    button.addEventListener("click", () => openSample(button));
  }
  $("strength").addEventListener("input", () => {
    $("strength-text").textContent = `${$("strength").value}%`;
    $("mask").style.opacity = $("strength").value / 100;
  });
  $("model").addEventListener("change", loadNetwork);
  $("backend").addEventListener("change", loadNetwork);
  $("size").addEventListener("change", () => {
    complain(missing);
    segmentCurrent();
  });
  for (const what of ["labels", "overlay"]) {
    $(`save-${what}`).addEventListener("click", () =>
      send({ type: "save", what, strength: $("strength").value / 100 }),
    );
  }
  for (const type of ["pointermove", "pointerdown", "pointerleave"]) $("view").addEventListener(type, point);
  addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) openFile(file);
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}

async function start() {
  describeLoading("Starting", 0);
  const response = await fetch("manifest.json", { cache: "no-cache" });
  if (!response.ok) throw new Error("manifest.json is missing: make the page again with bssnet-zoo demo.");
  manifest = await response.json();
  $("version").textContent = `Made by bssnet-zoo ${manifest.version}; ONNX Runtime Web ${manifest.runtime.version}.`;
  $("model").replaceChildren(...manifest.models.map(({ name }) => new Option(name, name)));
  if (!navigator.gpu) $("backend").querySelector("[value=webgpu]").disabled = true;
  const [photo, mask] = ["photo", "mask"].map((id) => $(id).transferControlToOffscreen());
  send({ type: "start", manifest, base: document.baseURI, photo, mask }, [photo, mask]);
  listen();
  if (navigator.connection?.saveData) {
    const { int8, float32 } = manifest.models[0].files;
    const size = (int8 ?? float32).bytes + manifest.runtime.files.wasm.reduce((sum, f) => sum + f.bytes, 0);
    describeLoading(`Choose a picture: the network, ${megabytes(size)} MB, is loaded then`, 0);
  } else {
    loadNetwork();
    openSample($("samples").querySelector("button"));
  }
}

start().catch((error) => {
  describeLoading(null);
  complain(error.message);
});
