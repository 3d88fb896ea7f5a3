// From raw logits to class ids at the size of the picture, row by row: no logits of full size are held.

// Position i of `target` among `source` pixels, corners aligned: the pixel before it and the weight of the next one.
function place(i, source, target) {
  const position = (i * (source - 1)) / Math.max(target - 1, 1);
  const before = Math.min(Math.floor(position), source - 1);
  return [before, Math.min(before + 1, source - 1), position - before];
}

function places(source, target) {
  const before = new Int32Array(target);
  const after = new Int32Array(target);
  const weight = new Float32Array(target);
  for (let i = 0; i < target; i++) [before[i], after[i], weight[i]] = place(i, source, target);
  return { before, after, weight };
}

/**
 * Class ids, as `bssnet_zoo.predict` finds them: logits are resized (bilinear, corners aligned) to what the network saw,
 * then to the picture, and the largest wins.
 *
 * @param {Float32Array} logits (classes, rows, columns)
 * @param {number[]} shape classes, rows, columns
 * @param {number[]} seen height and width of what the network saw
 * @param {number[]} size height and width of the picture
 * @returns {{labels: Uint8Array, counts: Uint32Array}} class ids, row by row, and the pixels of each class
 */
export function labelsOf(logits, [classes, rows, columns], [seenHeight, seenWidth], [height, width]) {
  const toSeen = places(columns, seenWidth);
  const toPicture = places(seenWidth, width);
  const same = width === seenWidth;
  const cache = new Map(); // the last rows of what the network saw: a picture's neighbours need the same

  function seenRow(y) {
    if (cache.has(y)) return cache.get(y);
    const [above, below, weight] = place(y, rows, seenHeight);
    const result = new Float32Array(classes * seenWidth);
    const line = new Float32Array(columns);
    for (let c = 0; c < classes; c++) {
      const [a, b] = [(c * rows + above) * columns, (c * rows + below) * columns];
      for (let x = 0; x < columns; x++) line[x] = logits[a + x] + weight * (logits[b + x] - logits[a + x]);
      for (let x = 0, o = c * seenWidth; x < seenWidth; x++, o++) {
        const left = line[toSeen.before[x]];
        result[o] = left + toSeen.weight[x] * (line[toSeen.after[x]] - left);
      }
    }
    if (cache.size > 1) cache.delete(cache.keys().next().value);
    cache.set(y, result);
    return result;
  }

  const labels = new Uint8Array(height * width);
  const counts = new Uint32Array(classes);
  const best = new Float32Array(width);
  const line = new Float32Array(seenWidth);
  for (let y = 0; y < height; y++) {
    const [above, below, weight] = place(y, seenHeight, height);
    const [a, b] = [seenRow(above), seenRow(below)];
    const row = labels.subarray(y * width, (y + 1) * width);
    best.fill(Number.NEGATIVE_INFINITY);
    for (let c = 0; c < classes; c++) {
      const start = c * seenWidth;
      for (let x = 0; x < seenWidth; x++) line[x] = a[start + x] + weight * (b[start + x] - a[start + x]);
      for (let x = 0; x < width; x++) {
        const left = line[same ? x : toPicture.before[x]];
        const value = same ? left : left + toPicture.weight[x] * (line[toPicture.after[x]] - left);
        if (value > best[x]) {
          best[x] = value;
          row[x] = c;
        }
      }
    }
    for (let x = 0; x < width; x++) counts[row[x]]++;
  }
  return { labels, counts };
}
