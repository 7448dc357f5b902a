// Numbers and commands as people read them. A number and its unit stay on one line.
const NBSP = "\u00a0";

export function bytes(count) {
  if (count < 1000) return `${count}${NBSP}bytes`;
  return count < 1e6 ? `${Math.round(count / 1e3)}${NBSP}KB` : `${(count / 1e6).toFixed(1)}${NBSP}MB`;
}

export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")}${NBSP}ms`;
}

/** Two lengths, the horizontal one first. */
export function size(width, height) {
  return `${width}${NBSP}×${NBSP}${height}`;
}

/** A share of 100. */
export function percent(value, digits = 1) {
  return `${value.toFixed(digits)}${NBSP}%`;
}

/** The request of this page as one command; the key is named, not shown. */
export function curl(url, type, name, hasKey) {
  const parts = [`curl ${quote(url)}`, `-H ${quote(`Content-Type: ${type}`)}`];
  if (hasKey) parts.push('-H "Authorization: Bearer $RAYSIGHT_API_KEY"');
  parts.push(`--data-binary ${quote(`@${name}`)}`);
  return parts.join(" \\\n  ");
}

/** One word for a POSIX shell, whatever is in it. */
function quote(text) {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}
