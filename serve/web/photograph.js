// The two figures: the photograph with the model's crop, and its patch tokens laid over the same place.
import { cropBox, patchAt } from "./geometry.js";
import { percent, size } from "./format.js";

const $ = (id) => document.getElementById(id);

export class Photograph {
  #worker = new Worker(new URL("./pca.worker.js", import.meta.url), { type: "module" });
  #answers = new Map(); // message id → [resolve, reject]
  #messages = 0;
  #url = null;
  #view = null; // {item, crop, grid} of what is shown

  constructor() {
    this.#worker.addEventListener("message", ({ data: { id, picture, error } }) => {
      const [resolve, reject] = this.#answers.get(id);
      this.#answers.delete(id);
      if (error) reject(new Error(error));
      else resolve(picture);
    });
    $("foreground").addEventListener("change", () => this.#paint());
    for (const id of ["photo-overlay", "pca-overlay"]) {
      $(id).addEventListener("pointermove", (event) => this.#point(event));
      $(id).addEventListener("pointerleave", () => this.#mark(null));
    }
  }

  /** Shows one answer; resolves when both pictures are there. Raises what the worker reports. */
  async show(file, item, model, signal) {
    const crop = cropBox(item.width, item.height, model);
    const grid = item.patches?.shape.slice(0, 2) ?? null;
    this.#view = { item, crop, grid };
    this.#mark(null);
    $("pca-figure").hidden = !grid;
    $("no-patches").hidden = Boolean(grid);
    for (const frame of [$("photo-frame"), $("pca-frame")]) {
      frame.style.setProperty("--width", item.width);
      frame.style.setProperty("--height", item.height);
    }
    const { x, y, width, height } = crop;
    const [W, H] = [item.width, item.height];
    for (const id of ["photo-overlay", "pca-overlay"]) $(id).setAttribute("viewBox", `0 0 ${W} ${H}`);
    $("photo-overlay").querySelector(".shade").setAttribute("d", `M0 0h${W}v${H}h${-W}zM${x} ${y}v${height}h${width}v${-height}z`);
    place($("photo-overlay").querySelector(".crop"), crop);
    Object.assign($("pca").style, {
      left: percentage(x / W),
      top: percentage(y / H),
      width: percentage(width / W),
      height: percentage(height / H),
    });
    await Promise.all([this.#load(file, model, signal), this.#paint(signal)]);
  }

  async #load(file, model, signal) {
    const { item, crop } = this.#view;
    const url = URL.createObjectURL(file);
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = url;
    const [rows, columns] = model.image_size;
    const all = crop.width >= item.width && crop.height >= item.height;
    const part = all ? "The whole photograph" : "The part within the line";
    $("photo").alt = `The photograph ${file.name}`;
    $("photo").src = $("pca-backdrop").src = url;
    try {
      await Promise.all([$("photo").decode(), $("pca-backdrop").decode()]);
      if (!signal.aborted) $("photo-caption").textContent = `${part}, at ${size(columns, rows)} pixels.`;
    } catch {
      // The server reads formats that browsers do not, TIFF first of all.
      if (!signal.aborted) $("photo-caption").textContent = "This browser cannot show the file, though the model could read it.";
    }
  }

  async #paint(signal) {
    const { item, grid } = this.#view;
    if (!grid) return;
    const view = this.#view;
    const foreground = $("foreground").checked;
    const { pixels, explained, shown } = await this.#ask({ patches: item.patches, foreground });
    if (signal?.aborted || view !== this.#view || foreground !== $("foreground").checked) return;
    const [rows, columns] = grid;
    const canvas = $("pca");
    [canvas.width, canvas.height] = [columns, rows];
    canvas.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
    const tokens = foreground ? `${shown} of ${rows * columns} patch tokens` : `${size(columns, rows)} patch tokens`;
    const caption =
      `The first three principal components of ${tokens} as red, green and blue;` +
      ` they hold ${percent(100 * explained, 0)} of the variance.`;
    $("pca-caption").textContent = caption;
    canvas.setAttribute("aria-label", `Picture of the patch tokens. ${caption}`);
  }

  #ask(message) {
    const id = this.#messages++;
    return new Promise((resolve, reject) => {
      this.#answers.set(id, [resolve, reject]);
      this.#worker.postMessage({ id, ...message });
    });
  }

  /** The patch under the pointer is marked in both figures. */
  #point(event) {
    const { item, crop, grid } = this.#view;
    const frame = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * item.width;
    const y = ((event.clientY - frame.top) / frame.height) * item.height;
    this.#mark(grid && patchAt(x, y, crop, grid));
  }

  #mark(box) {
    for (const id of ["photo-overlay", "pca-overlay"]) {
      const mark = $(id).querySelector(".patch");
      mark.classList.toggle("on", box !== null);
      if (box) place(mark, box);
    }
  }
}

function place(rect, { x, y, width, height }) {
  Object.entries({ x, y, width, height }).forEach(([name, value]) => rect.setAttribute(name, value));
}

function percentage(share) {
  return `${100 * share}%`;
}
