// What the network sees of a picture: resized as bssnet_zoo does it, and normalised.

const MOST = 16e6; // pixels that the network sees: more don't fit the memory of a page

/** Height and width with that shorter side. */
export function seenSize(height, width, side) {
  const size = height <= width ? [side, (side * width) / height] : [(side * height) / width, side];
  const [newHeight, newWidth] = size.map(Math.trunc);
  if (newHeight * newWidth > MOST) {
    const became = `at a shorter side of ${side} it would become ${newWidth} × ${newHeight}`;
    throw new Error(`A picture of ${width} × ${height} is too long and thin: ${became}.`);
  }
  return [newHeight, newWidth];
}

// For each pixel of the result: the first of the source's that count, and their weights (bilinear, antialiased).
function taps(source, target) {
  const scale = source / target;
  const reach = Math.max(scale, 1);
  return Array.from({ length: target }, (_, i) => {
    const centre = scale * (i + 0.5);
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(source, Math.trunc(centre + reach + 0.5));
    const weights = new Float64Array(last - first);
    for (let k = first; k < last; k++) weights[k - first] = Math.max(0, 1 - Math.abs((k - centre + 0.5) / reach));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

// The same with whole numbers in place of fractions, of the `bits` that fit 16 of them: what Pillow and torch round to.
function wholeTaps(source, target) {
  const rows = taps(source, target);
  const largest = rows.reduce((most, { weights }) => Math.max(most, ...weights), 0);
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const whole = rows.map(({ first, weights }) => ({
    first,
    weights: Int32Array.from(weights, (weight) => Math.trunc(weight * 2 ** bits + 0.5)),
  }));
  return { rows: whole, bits, half: 2 ** (bits - 1) };
}

function resizeColumns(rgba, height, width, target) {
  const result = new Uint8ClampedArray(4 * height * target);
  const { rows, bits, half } = wholeTaps(width, target);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < target; x++) {
      const { first, weights } = rows[x];
      let [red, green, blue] = [half, half, half];
      for (let k = 0, i = 4 * (y * width + first); k < weights.length; k++, i += 4) {
        red += weights[k] * rgba[i];
        green += weights[k] * rgba[i + 1];
        blue += weights[k] * rgba[i + 2];
      }
      const o = 4 * (y * target + x);
      result[o] = red >> bits;
      result[o + 1] = green >> bits;
      result[o + 2] = blue >> bits;
    }
  }
  return result;
}

function resizeRows(rgba, height, width, target) {
  const result = new Uint8ClampedArray(4 * target * width);
  const { rows, bits, half } = wholeTaps(height, target);
  const sums = new Int32Array(4 * width);
  for (let y = 0; y < target; y++) {
    const { first, weights } = rows[y];
    sums.fill(half);
    for (let k = 0; k < weights.length; k++) {
      const start = 4 * (first + k) * width;
      const weight = weights[k];
      for (let i = 0; i < sums.length; i++) sums[i] += weight * rgba[start + i];
    }
    for (let i = 0, o = 4 * y * width; i < sums.length; i++, o++) result[o] = sums[i] >> bits;
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
