// What the network sees of a picture: resized as bssnet_zoo does it, and normalised.

const HALF = 0.5; // where a sum begins that is cut to bytes: ties, frequent at half the size, are rounded up

/** Height and width with that shorter side. */
export function seenSize(height, width, side) {
  return height <= width ? [side, Math.trunc((side * width) / height)] : [Math.trunc((side * height) / width), side];
}

// For each pixel of the result: the first of the source's that count, and their weights (bilinear, antialiased).
function taps(source, target) {
  const scale = source / target;
  const reach = Math.max(scale, 1);
  return Array.from({ length: target }, (_, i) => {
    const centre = scale * (i + 0.5);
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(source, Math.trunc(centre + reach + 0.5));
    const weights = new Float32Array(last - first);
    let sum = 0;
    for (let k = first; k < last; k++) {
      const weight = Math.max(0, 1 - Math.abs((k - centre + 0.5) / reach));
      weights[k - first] = weight;
      sum += weight;
    }
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

function resizeColumns(rgba, height, width, target) {
  const result = new Uint8Array(4 * height * target);
  const columns = taps(width, target);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < target; x++) {
      const { first, weights } = columns[x];
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let k = 0, i = 4 * (y * width + first); k < weights.length; k++, i += 4) {
        red += weights[k] * rgba[i];
        green += weights[k] * rgba[i + 1];
        blue += weights[k] * rgba[i + 2];
      }
      const o = 4 * (y * target + x);
      result[o] = red;
      result[o + 1] = green;
      result[o + 2] = blue;
    }
  }
  return result;
}

function resizeRows(rgba, height, width, target) {
  const result = new Uint8Array(4 * target * width);
  const rows = taps(height, target);
  const sums = new Float32Array(4 * width);
  for (let y = 0; y < target; y++) {
    const { first, weights } = rows[y];
    sums.fill(HALF);
    for (let k = 0; k < weights.length; k++) {
      const start = 4 * (first + k) * width;
      const weight = weights[k];
      for (let i = 0; i < sums.length; i++) sums[i] += weight * rgba[start + i];
    }
    result.set(sums, 4 * y * width);
  }
  return result;
}

/** RGBA bytes of any size at another: columns first, then rows, rounded to bytes after each. */
export function resize(rgba, [height, width], [newHeight, newWidth]) {
  const narrow = newWidth === width ? rgba : resizeColumns(rgba, height, width, newWidth);
  return newHeight === height ? narrow : resizeRows(narrow, height, newWidth, newHeight);
}

/** RGBA bytes as (3, H, W) floats: minus mean, divided by std. */
export function normalise(rgba, mean, std) {
  const pixels = rgba.length / 4;
  const result = new Float32Array(3 * pixels);
  for (let channel = 0; channel < 3; channel++) {
    const scale = 1 / (255 * std[channel]);
    const shift = -mean[channel] / std[channel];
    const start = channel * pixels;
    for (let i = 0; i < pixels; i++) result[start + i] = rgba[4 * i + channel] * scale + shift;
  }
  return result;
}
