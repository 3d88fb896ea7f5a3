// Files that are what the manifest says, or an error.

async function digest(buffer) {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// "sha256-..." of fetch's own check, for pages without crypto.subtle: those that come over plain http from elsewhere
function integrity(sha256) {
  const bytes = sha256.match(/../g).map((hex) => Number.parseInt(hex, 16));
  return `sha256-${btoa(String.fromCharCode(...bytes))}`;
}

async function read(response, size, onBytes) {
  const buffer = new Uint8Array(size);
  const reader = response.body.getReader();
  let loaded = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return loaded === size ? buffer.buffer : null;
    if (loaded + value.length > size) {
      await reader.cancel();
      return null;
    }
    buffer.set(value, loaded);
    loaded += value.length;
    onBytes(value.length);
  }
}

/** The bytes of a file `{url, bytes, sha256}`; `onBytes` is called with the number of bytes of each piece. */
async function download(file, base, onBytes, signal) {
  const url = new URL(file.url, base);
  const name = file.url.split("/").at(-1);
  const options = { credentials: "omit", signal };
  if (!globalThis.crypto?.subtle) options.integrity = integrity(file.sha256);
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error(
      options.integrity
        ? `${name} can't be loaded from ${url.host}, or is not the file that this page was made with.`
        : `${name} can't be loaded from ${url.host}: is the network there?`,
    );
  }
  if (!response.ok) throw new Error(`${name} is missing: ${url.host} answers ${response.status}.`);
  let buffer;
  try {
    buffer = await read(response, file.bytes, onBytes);
  } catch {
    throw new Error(`The download of ${name} broke off: load the page again.`);
  }
  if (!buffer || (crypto.subtle && (await digest(buffer)) !== file.sha256)) {
    throw new Error(`${name} is not the file that this page was made with (its sha256 differs), so it is not used.`);
  }
  return buffer;
}

/** The bytes of several files, each with its base; if one fails, the others are given up. */
export async function downloadAll(files, onBytes) {
  const stop = new AbortController();
  try {
    return await Promise.all(files.map(([file, base]) => download(file, base, onBytes, stop.signal)));
  } catch (error) {
    stop.abort();
    throw error;
  }
}
