// The parts of the page that show numbers and names.
import { bytes, milliseconds, percent, size } from "./format.js";

const $ = (id) => document.getElementById(id);

export function showModel(model) {
  $("model").textContent = model.id;
  showFingerprint(model.fingerprint);
}

/** What the model's fingerprint is made of, and the digest that stands in an answer. */
export function showFingerprint({ digest: own, ...fields }, digest = own) {
  $("fingerprint").hidden = false;
  $("fingerprint-short").textContent = digest;
  $("fingerprint-fields").replaceChildren(
    ...Object.entries(fields).flatMap(([name, value]) => [
      element("dt", { textContent: name }),
      element("dd", { textContent: Array.isArray(value) ? value.join("\n") : String(value) }),
    ]),
  );
}

export function showFacts(item, file, time) {
  const facts = [`${size(item.width, item.height)} px`, bytes(file.size), `${milliseconds(time)} round trip`];
  $("facts").replaceChildren(...facts.map((textContent) => element("li", { textContent })));
}

export function showClasses(classes) {
  $("classes-section").hidden = !classes?.length;
  $("classes").replaceChildren(
    ...(classes ?? []).map(({ index, name, probability }) => {
      const bar = element("span", { className: "bar" });
      bar.style.setProperty("--share", `${probability}%`);
      return element("li", {}, [
        element("span", { className: "class-name", textContent: name ?? `class ${index}` }),
        element("span", { className: "class-share", textContent: percent(probability) }),
        bar,
      ]);
    }),
  );
}

/** One bar a number, on a common scale around zero. */
export function showEmbedding(vector) {
  const largest = vector.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const norm = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  const path = Array.from(vector, (value, i) => `M${i + 0.5} 0V${largest ? (-value / largest).toFixed(4) : 0}`);
  const plot = $("plot");
  plot.setAttribute("viewBox", `0 -1.04 ${vector.length} 2.08`);
  plot.replaceChildren(
    svg("path", { class: "zero", d: `M0 0H${vector.length}` }),
    svg("path", { class: "bars", d: path.join(""), "stroke-width": 0.7 }),
  );
  const caption = `${vector.length} numbers, length ${norm.toPrecision(4)}, largest ${largest.toPrecision(3)}`;
  plot.setAttribute("aria-label", `Bar plot of the embedding: ${caption}`);
  $("plot-caption").textContent = caption;
  plot.onpointermove = (event) => {
    const frame = plot.getBoundingClientRect();
    const i = Math.floor(((event.clientX - frame.left) / frame.width) * vector.length);
    if (i in vector) $("plot-caption").textContent = `[${i}] = ${vector[i].toPrecision(6)}`;
  };
  plot.onpointerleave = () => ($("plot-caption").textContent = caption);
}

function element(tag, properties, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}
