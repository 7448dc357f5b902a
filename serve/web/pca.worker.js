// Decoding and components take a tenth of a second or more: off the main thread, or the page would stutter.
import { patchPicture } from "./pca.js";
import { decodeFloat16 } from "./tensors.js";

addEventListener("message", ({ data: { id, patches, foreground } }) => {
  try {
    if (patches.dtype !== "float16") throw new Error(`The patches are ${patches.dtype}; this page knows float16.`);
    const picture = patchPicture(decodeFloat16(patches.base64), patches.shape, foreground);
    postMessage({ id, picture }, [picture.pixels.buffer]);
  } catch (error) {
    postMessage({ id, error: error.message });
  }
});
