// The page: takes an image, asks the endpoint, shows what it answers.
import { ApiError, featuresUrl, getFeatures, getModel, mediaType } from "./api.js";
import { watchIntake } from "./intake.js";
import { showClasses, showEmbedding, showFacts, showFingerprint, showModel } from "./panels.js";
import { Photograph } from "./photograph.js";
import { curl } from "./format.js";
import { copyText, download } from "./share.js";
import { encodeNpy } from "./tensors.js";

const $ = (id) => document.getElementById(id);
const photograph = new Photograph();

let model = null;
let key = "";
let wanted = null; // the file on its way, or waiting for a key
let shown = null; // {file, vector, json} of the result on the page
let request = new AbortController();

/** For all to see while something is on its way; for screen readers alone once the page itself shows it. */
function say(text, { visible = false } = {}) {
  $("status").textContent = text;
  $("status").classList.toggle("visually-hidden", !visible);
}

/** Shows what went wrong; `about` is the name of the file it is about, if it is about a file. */
function complain(error, about = "") {
  say("");
  const message = error instanceof ApiError ? error.message : `the page failed: ${error.message}`;
  $("alert").textContent = about ? `${about}: ${message}` : message.charAt(0).toUpperCase() + message.slice(1);
  if (!(error instanceof ApiError)) console.error(error);
  if (error.status === 401) {
    if (!key) $("alert").textContent = ""; // nothing went wrong yet, and the form says what is wanted
    $("key-form").hidden = false;
    $("key").select(); // and focus: the next key typed replaces a wrong one
  }
}

async function connect() {
  model = await getModel(key);
  $("key-form").hidden = true;
  $("alert").textContent = "";
  showModel(model);
}

async function show(file) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  wanted = file;
  $("alert").textContent = "";
  $("result").setAttribute("aria-busy", "true");
  say(`Computing the features of ${file.name} …`, { visible: true });
  try {
    if (!model) await connect();
    const { item, answer, milliseconds } = await getFeatures(model, file, key, signal);
    if (signal.aborted) return;
    wanted = null;
    await present(file, item, answer, milliseconds, signal);
  } catch (error) {
    if (signal.aborted) return;
    complain(error, error.status === 422 ? file.name : ""); // of the image, not of the server or the key
  } finally {
    if (!signal.aborted) $("result").setAttribute("aria-busy", "false");
  }
}

async function present(file, item, answer, milliseconds, signal) {
  const vector = Float32Array.from(item.embedding ?? []);
  shown = { file, vector, json: JSON.stringify(item.embedding) };
  document.body.classList.add("has-result");
  $("result").hidden = false;
  $("file-name").textContent = file.name;
  showFacts(item, file, milliseconds);
  showClasses(item.classes);
  $("embedding-section").hidden = !item.embedding;
  showEmbedding(vector);
  showFingerprint(model.fingerprint, answer.fingerprint);
  $("curl").textContent = curl(featuresUrl(model), mediaType(file), file.name, Boolean(key));
  await photograph.show(file, item, model, signal);
  if (!signal.aborted) say(`${file.name}: the answer came in ${Math.round(milliseconds)} ms.`);
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

async function copy(button, text, what) {
  try {
    await copyText(text);
    say(`Copied ${what}.`);
    const label = button.dataset.label ?? (button.dataset.label = button.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  } catch (error) {
    complain(new ApiError(`The browser did not let the page copy: ${error.message}`));
  }
}

watchIntake($("file"), {
  take: show,
  refuse: (message) => complain(new ApiError(message)),
});

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  try {
    await connect();
    say("The server takes this key.", { visible: true });
    if (wanted) await show(wanted);
    else $("file").focus();
  } catch (error) {
    complain(error);
  }
});

$("copy-embedding").addEventListener("click", ({ currentTarget }) => copy(currentTarget, shown.json, "the embedding as JSON"));
$("copy-curl").addEventListener("click", ({ currentTarget }) => copy(currentTarget, $("curl").textContent, "the command"));
$("download-json").addEventListener("click", () => {
  download(new Blob([shown.json], { type: "application/json" }), `${stem(shown.file.name)}.json`);
});
$("download-npy").addEventListener("click", () => download(encodeNpy(shown.vector), `${stem(shown.file.name)}.npy`));

connect().catch(complain);
