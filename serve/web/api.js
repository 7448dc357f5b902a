// The endpoint's API, as this page uses it. Addresses are relative, so that the page works behind a path prefix.

/** What went wrong, in the server's own words where it gave any. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The outputs that this page can show. */
const SHOWN = ["embedding", "patches", "classes"];

/** The model that the server holds: an entry of GET v1/models. */
export async function getModel(key) {
  const { body } = await ask("v1/models", { headers: headers(key) });
  const model = body.data?.[0];
  if (!model) throw new ApiError("The server names no model.");
  return model;
}

/** Address of a request for all that the model gives and the page shows. */
export function featuresUrl(model) {
  const hidden = model.patch_grid ? [] : ["patches"]; // tokens that form no grid make no picture
  const outputs = SHOWN.filter((name) => model.outputs.includes(name) && !hidden.includes(name));
  return new URL(`v1/features?outputs=${outputs.join(",")}`, document.baseURI).href;
}

/** Features of one image file: {item, answer, milliseconds}; the time is that of the whole round trip. */
export async function getFeatures(model, file, key, signal) {
  const { body, milliseconds } = await ask(featuresUrl(model), {
    method: "POST",
    headers: { ...headers(key), "Content-Type": mediaType(file) },
    body: file,
    signal,
  });
  const item = body.data?.[0];
  if (!item) throw new ApiError("The answer holds no features.");
  if (item.error) throw new ApiError(item.error.message, { status: 200, code: item.error.code });
  return { item, answer: body, milliseconds };
}

/** The browser goes by the file's name; where it knows none, the server looks at the bytes anyway. */
export function mediaType(file) {
  return file.type || "image/*";
}

function headers(key) {
  return { Accept: "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(url, options) {
  const start = performance.now();
  let response;
  let text;
  try {
    response = await fetch(url, { cache: "no-store", ...options });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  const milliseconds = performance.now() - start;
  const body = parse(text);
  if (!response.ok) throw failure(response, body);
  if (body === null) throw new ApiError("The answer is not JSON.", { status: response.status });
  return { body, milliseconds };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy's HTML, say: the status tells
  }
}

function failure(response, body) {
  const message = body?.error?.message ?? `The server answers ${response.status} ${response.statusText}`.trim();
  const wait = response.headers.get("Retry-After");
  const hint = wait && /^\d+$/.test(wait) ? ` Try again in ${wait} s.` : "";
  return new ApiError(message + hint, { status: response.status, code: body?.error?.code ?? null });
}
