// The picture DINOv2 is known for: the first three principal components of the patch tokens as red, green and blue.

const BLOCK = 8; // vectors iterated together: the three wanted converge as fast as the ninth variance is smaller
const MAX_ITERATIONS = 500;
const CONVERGED = 1e-12; // 1 - cosine of a vector to itself one iteration before
const CLIP = 0.01; // of the patches at either end: one outlier token would leave the others without contrast

/**
 * The picture of a grid of patch tokens.
 *
 * @param {Float32Array} tokens rows × columns × width values, row by row.
 * @param {number[]} shape [rows, columns, width].
 * @param {boolean} foreground show only the patches on the centre's side of the first component, with components of
 *   their own (as in the DINOv2 paper).
 * @returns {{pixels: Uint8ClampedArray, explained: number, shown: number}} RGBA of columns × rows pixels, background
 *   transparent; the share of the variance that the three components hold; the number of patches shown.
 */
export function patchPicture(tokens, [rows, columns, width], foreground) {
  let chosen = Array.from({ length: rows * columns }, (_, i) => i);
  let { scores, explained } = components(tokens, chosen, width);
  const outward = centrality(rows, columns);
  if (dot(scores[0], outward) < 0) scores[0] = scores[0].map((value) => -value);
  if (foreground) {
    const first = scores[0];
    chosen = chosen.filter((i) => first[i] > 0);
    ({ scores, explained } = components(tokens, chosen, width));
  }
  const pixels = new Uint8ClampedArray(4 * rows * columns);
  scores.map(stretch).forEach((channel, k) => chosen.forEach((patch, i) => (pixels[4 * patch + k] = 255 * channel[i])));
  for (const patch of chosen) pixels[4 * patch + 3] = 255;
  return { pixels, explained, shown: chosen.length };
}

/** Scores of the chosen tokens on their first three principal components, and the share of variance these hold. */
export function components(tokens, chosen, width, count = 3) {
  const n = chosen.length;
  const channels = centredChannels(tokens, chosen, width);
  const covariance = new Float64Array(width * width);
  let total = 0;
  for (let i = 0; i < width; i++) {
    for (let j = i; j < width; j++) {
      covariance[i * width + j] = covariance[j * width + i] = dot(channels[i], channels[j]) / n;
    }
    total += covariance[i * width + i];
  }
  const axes = leadingAxes(covariance, width).slice(0, count);
  const scores = axes.map((axis) => {
    const score = new Float64Array(n);
    axis.forEach((weight, c) => channels[c].forEach((value, i) => (score[i] += weight * value)));
    return score;
  });
  const held = scores.reduce((sum, score) => sum + dot(score, score) / n, 0);
  return { scores, explained: total > 0 ? held / total : 0 };
}

function centredChannels(tokens, chosen, width) {
  return Array.from({ length: width }, (_, c) => {
    const channel = Float64Array.from(chosen, (token) => tokens[token * width + c]);
    const mean = channel.reduce((sum, value) => sum + value, 0) / chosen.length;
    return channel.map((value) => value - mean);
  });
}

/** Eigenvectors of the largest eigenvalues of a symmetric matrix, by orthogonal iteration; the first few are exact. */
function leadingAxes(matrix, width) {
  let axes = Array.from({ length: Math.min(BLOCK, width) }, (_, k) =>
    Float64Array.from({ length: width }, (_, i) => Math.sin((k + 1) * (i + 1)) + (i % (k + 2) === 0)),
  );
  orthonormalise(axes);
  for (let iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
    const next = axes.map((axis) => {
      const image = new Float64Array(width);
      for (let i = 0; i < width; i++) image[i] = dot(matrix.subarray(i * width, (i + 1) * width), axis);
      return image;
    });
    orthonormalise(next);
    const still = next.slice(0, 3).every((axis, k) => 1 - Math.abs(dot(axis, axes[k])) < CONVERGED);
    axes = next;
    if (still) break;
  }
  return axes;
}

/** Gram and Schmidt, modified; a vector within the span of those before it becomes zero. */
function orthonormalise(vectors) {
  vectors.forEach((vector, k) => {
    for (const before of vectors.slice(0, k)) {
      const share = dot(vector, before);
      for (let i = 0; i < vector.length; i++) vector[i] -= share * before[i];
    }
    const norm = Math.sqrt(dot(vector, vector));
    for (let i = 0; i < vector.length; i++) vector[i] = norm > 1e-300 ? vector[i] / norm : 0;
  });
}

/** Positive in the middle, negative at the border, zero on average: what a photograph is of tends to be in its middle. */
function centrality(rows, columns) {
  const values = Float64Array.from({ length: rows * columns }, (_, i) => {
    const [y, x] = [Math.floor(i / columns), i % columns];
    return -Math.hypot((y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5);
  });
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return values.map((value) => value - mean);
}

/** To 0..1 between the percentiles; what lies outside is clipped by Uint8ClampedArray. */
function stretch(score) {
  const sorted = score.slice().sort();
  const low = sorted[Math.floor(CLIP * (sorted.length - 1))];
  const high = sorted[Math.ceil((1 - CLIP) * (sorted.length - 1))];
  return score.map((value) => (high > low ? (value - low) / (high - low) : 0.5));
}

function dot(a, b) {
  let [s, t] = [0, 0]; // two sums: a single one would wait for each addition
  const even = a.length & ~1;
  for (let i = 0; i < even; i += 2) {
    s += a[i] * b[i];
    t += a[i + 1] * b[i + 1];
  }
  return even < a.length ? s + t + a[even] * b[even] : s + t;
}
