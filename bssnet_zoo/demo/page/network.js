// The network: onnxruntime-web and a model, on the GPU or the CPU.

import { downloadAll } from "./download.js";

const FAST_ENOUGH = 50; // ms a frame: a GPU that does this is taken without a look at the CPU
const MAX_THREADS = 8;

const runtimes = new Map(); // one of each backend, for all models

function asModule(buffer) {
  return URL.createObjectURL(new Blob([buffer], { type: "text/javascript" }));
}

/** Threads that WebAssembly may use: one where the host can't isolate the page. */
function threads() {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;
}

// Checked bytes are run, not what a URL gives the next time: modules are blobs, the WebAssembly is handed over.
async function startRuntime(files) {
  const [library, starter, binary] = files;
  const ort = await import(asModule(library));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads();
  ort.env.wasm.wasmPaths = { mjs: asModule(starter) };
  ort.env.wasm.wasmBinary = binary;
  return ort;
}

async function gpuPrecision() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return null;
  const software = adapter.isFallbackAdapter || adapter.info?.isFallbackAdapter;
  return { software: Boolean(software), precision: adapter.features.has("shader-f16") ? "float16" : "float32" };
}

class Network {
  constructor(ort, session, model, backend, precision) {
    Object.assign(this, { ort, session, model, backend, precision });
    this.threads = backend === "wasm" ? ort.env.wasm.numThreads : 0;
    this.fresh = true; // it has not run
  }

  /** From normalised floats (3, H, W) to raw logits, their shape and the milliseconds it took. */
  async run(floats, size) {
    try {
      return await this.#run(floats, size);
    } catch (error) {
      throw Object.assign(new Error(error.message || String(error)), { backend: this.backend });
    }
  }

  async #run(floats, [height, width]) {
    const images = new this.ort.Tensor("float32", floats, [1, 3, height, width]);
    const start = performance.now();
    const { logits } = await this.session.run({ images });
    const data = await logits.getData(true);
    const milliseconds = performance.now() - start;
    images.dispose();
    return { logits: data, shape: logits.dims.slice(1), milliseconds };
  }

  async time(size) {
    const floats = new Float32Array(3 * size[0] * size[1]);
    const times = [];
    for (let i = 0; i < 4; i++) times.push((await this.run(floats.slice(), size)).milliseconds);
    return times.slice(1).sort((a, b) => a - b)[1]; // the first prepares
  }

  /** A GPU that was lost can't even do this. */
  async end() {
    await this.session.release().catch((error) => console.warn("The network could not be released:", error));
  }
}

async function open(manifest, model, backend, precision, base, onProgress) {
  const runtime = manifest.runtime;
  const started = runtimes.get(backend);
  const runtimeBase = new URL(runtime.base, base);
  const wanted = [[model.files[precision], base]];
  if (!started) wanted.push(...runtime.files[backend].map((file) => [file, runtimeBase]));
  const total = wanted.reduce((sum, [file]) => sum + file.bytes, 0);
  let loaded = 0;
  const [weights, ...files] = await downloadAll(wanted, (bytes) => {
    loaded += bytes;
    onProgress(loaded, total);
  });
  if (!started) runtimes.set(backend, await startRuntime(files));
  const ort = runtimes.get(backend);
  try {
    const session = await ort.InferenceSession.create(new Uint8Array(weights), { executionProviders: [backend] });
    return new Network(ort, session, model, backend, precision);
  } catch (error) {
    runtimes.delete(backend); // it may be broken for good
    throw error;
  }
}

/**
 * Loads a model.
 *
 * @param {string} backend "webgpu", "wasm", or "auto": the GPU if there is one and it is faster.
 * @param {number[]} size height and width, to compare at
 */
export async function openNetwork(manifest, model, backend, size, base, onProgress) {
  const onCPU = () => open(manifest, model, "wasm", model.files.int8 ? "int8" : "float32", base, onProgress);
  if (backend === "wasm") return onCPU();
  const gpu = await gpuPrecision();
  if (backend === "webgpu" && !gpu) throw new Error("This browser has no WebGPU here: choose the CPU.");
  if (backend === "auto" && (!gpu || gpu.software)) return onCPU();
  const onGPU = () => open(manifest, model, "webgpu", gpu.precision, base, onProgress);
  if (backend === "webgpu") return onGPU();
  let network;
  let milliseconds;
  try {
    network = await onGPU();
    milliseconds = await network.time(size);
  } catch (error) {
    console.warn("WebGPU failed, the CPU takes over:", error);
    return onCPU();
  }
  if (milliseconds <= FAST_ENOUGH) return network;
  const other = await onCPU().catch((error) => console.warn("Without the CPU, the GPU goes on:", error));
  if (!other) return network;
  const slower = (await other.time(size)) < milliseconds ? network : other;
  await slower.end();
  return slower === network ? other : network;
}
