// Where the model looks: timm's crop modes, in pixels of the upright photograph.

/**
 * The part of the photograph that becomes the model's input; with mode "border" it reaches beyond it.
 *
 * @param {number} width of the photograph.
 * @param {number} height of the photograph.
 * @param {{image_size: number[], crop_pct?: number, crop_mode?: string}} model image_size is [height, width].
 * @returns {{x: number, y: number, width: number, height: number}}
 */
export function cropBox(width, height, { image_size: [rows, columns], crop_pct = 1, crop_mode = "center" }) {
  let size;
  if (crop_mode === "squash") {
    size = [width * crop_pct, height * crop_pct];
  } else {
    const fit = crop_mode === "border" ? Math.min : Math.max;
    const scale = fit(rows / height, columns / width) / crop_pct;
    size = [columns / scale, rows / scale];
  }
  return { x: (width - size[0]) / 2, y: (height - size[1]) / 2, width: size[0], height: size[1] };
}

/** The patch under a point of the photograph, as a box in its pixels; null outside the crop. */
export function patchAt(x, y, crop, [rows, columns]) {
  const column = Math.floor(((x - crop.x) / crop.width) * columns);
  const row = Math.floor(((y - crop.y) / crop.height) * rows);
  if (column < 0 || row < 0 || column >= columns || row >= rows) return null;
  const [width, height] = [crop.width / columns, crop.height / rows];
  return { x: crop.x + column * width, y: crop.y + row * height, width, height };
}
