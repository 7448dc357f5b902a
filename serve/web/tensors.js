// Arrays as they travel: base64 of little-endian float16 in, .npy out.

/** @returns {Float32Array} the values of base64-encoded little-endian IEEE 754 half precision. */
export function decodeFloat16(base64) {
  const text = atob(base64);
  const values = new Float32Array(text.length >> 1);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < values.length; i++) {
    const half = text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8);
    const sign = (half & 0x8000) << 16;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 0) {
      values[i] = (sign ? -1 : 1) * fraction * 2 ** -24; // zero and subnormal
    } else if (exponent === 31) {
      bits[i] = sign | 0x7f800000 | (fraction << 13); // infinite and not a number
    } else {
      bits[i] = sign | ((exponent + 112) << 23) | (fraction << 13);
    }
  }
  return values;
}

/** @returns {Blob} a NumPy file (format 1.0) with one float32 vector. */
export function encodeNpy(vector) {
  const description = `{'descr': '<f4', 'fortran_order': False, 'shape': (${vector.length},), }`;
  const length = Math.ceil((10 + description.length + 1) / 64) * 64; // NumPy aligns the data to 64 bytes
  const bytes = new DataView(new ArrayBuffer(length + 4 * vector.length));
  const head = `\x93NUMPY\x01\x00${description.padEnd(length - 11)}\n`;
  [...head.slice(0, 8)].forEach((character, i) => bytes.setUint8(i, character.charCodeAt(0)));
  bytes.setUint16(8, length - 10, true);
  [...head.slice(8)].forEach((character, i) => bytes.setUint8(10 + i, character.charCodeAt(0)));
  vector.forEach((value, i) => bytes.setFloat32(length + 4 * i, value, true));
  return new Blob([bytes], { type: "application/x-npy" });
}
