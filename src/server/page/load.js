// The server's load: reads the metrics every two seconds and draws the last two minutes.

import { metrics } from "./api.js";

const EVERY_MS = 2000;
/** Points of a plot. */
const POINTS = 61;
const SVG = "http://www.w3.org/2000/svg";

/** The plots: the name of the value, how it is read from two readings, and its text. */
const PLOTS = [
  { name: "Running", value: (now) => now["vllm:num_requests_running"], text: String },
  { name: "Waiting", value: (now) => now["vllm:num_requests_waiting"], text: String },
  {
    name: "KV cache",
    value: (now) => 100 * now["vllm:kv_cache_usage_perc"],
    text: (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`,
    most: 100,
  },
  {
    name: "Tokens/s",
    value: (now, before) => {
      if (!before) return 0;
      const name = "vllm:generation_tokens_total";
      return Math.max(0, (now[name] - before[name]) / ((now.time - before.time) / 1000));
    },
    text: (value) => value.toFixed(value < 10 ? 1 : 0),
  },
];

const NAMES = [
  "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
  "vllm:generation_tokens_total",
];

/** The sum of each named metric over its lines. `null` if one is missing. */
export function parse(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const name = NAMES.find((known) => line.startsWith(known) && "{ ".includes(line[known.length]));
    if (!name) continue;
    // The value follows the labels, in which a brace can stand only within quotes.
    const value = Number(line.slice(line.lastIndexOf("}") + 1).trim().split(/\s+/).slice(-1)[0]);
    sums[name] = (sums[name] ?? 0) + value;
  }
  return NAMES.every((name) => Number.isFinite(sums[name])) ? sums : null;
}

function draw({ most }, values) {
  const top = Math.max(most ?? 1, ...values);
  const x = (i) => POINTS - values.length + i;
  return values.map((value, i) => `${i ? "L" : "M"}${x(i)} ${(20 - (19 * value) / top).toFixed(2)}`).join("");
}

/** Makes the parts of a plot, and returns the function that shows its values. */
function plot(list, kind) {
  const group = document.createElement("div");
  const name = document.createElement("dt");
  name.textContent = kind.name;
  const number = document.createElement("dd");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const [under, line] = ["under", "line"].map((label) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", label);
    svg.append(path);
    return path;
  });
  group.append(name, number, svg);
  list.append(group);
  return (values) => {
    number.textContent = kind.text(values[values.length - 1]);
    const path = draw(kind, values);
    line.setAttribute("d", path);
    under.setAttribute("d", `${path}V20H${POINTS - values.length}Z`);
  };
}

/** Polls for as long as the page is open. `section` is hidden while the metrics are refused; `show` gets the
 * number of running and waiting requests, or null. */
export function watch({ section, list, key, show }) {
  const shows = PLOTS.map((kind) => plot(list, kind));
  const values = PLOTS.map(() => []);
  let before = null;
  const poll = async () => {
    if (document.hidden) return;
    let now = null;
    try {
      now = parse(await metrics(key()));
    } catch {
      // The server is away or refuses: there is nothing to draw.
    }
    section.hidden = !now;
    show(now && { running: now["vllm:num_requests_running"], waiting: now["vllm:num_requests_waiting"] });
    if (!now) {
      before = null;
      return;
    }
    now.time = performance.now();
    PLOTS.forEach((kind, i) => {
      values[i].push(kind.value(now, before));
      values[i].splice(0, values[i].length - POINTS);
      shows[i](values[i]);
    });
    before = now;
  };
  const again = () => poll().finally(() => setTimeout(again, EVERY_MS));
  again();
}
