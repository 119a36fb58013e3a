// A line chart in SVG: time to the right, lines told apart by colour, dashes and a legend with the last values.

import { h, svg } from "./dom.js";
import { clock, number } from "./format.js";
import { t } from "./words.js";

const WIDTH = 600;
const HEIGHT = 220;
const LEFT = 62;
const BOTTOM = 24;
const TOP = 10;
// What was longer ago is not how it is now.
const RECENT_US = 10e6;

// `lines`: [name, [[microseconds, value or null], ...]], up to four of them. `say` gives a value of the legend.
export function chart(title, unit, lines, say = number) {
  const times = lines.flatMap(([, points]) => points.map(([at]) => at));
  const values = lines.flatMap(([, points]) => points.map(([, value]) => value ?? 0));
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const top = ceiling(Math.max(...values, 0));
  const x = (at) => LEFT + ((at - first) / Math.max(last - first, 1)) * (WIDTH - LEFT - 8);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const recent = ([at, value]) => value !== null && at >= last - RECENT_US;
  const latest = lines.map(([name, points]) => [name, points.findLast(recent)?.[1] ?? null]);
  const said = latest.map(([name, value]) => `${name} ${value === null ? "–" : say(value)}`).join(", ");
  return h("figure", null,
    h("figcaption", null, `${title} (${unit})`),
    svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": t("chart.said", { title, unit, said, top: say(Math.max(...values, 0)) }) },
      [0, 0.5, 1].map((share) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 8, y1: y(top * share), y2: y(top * share) }),
        svg("text", { x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" }, short(top * share)),
      ]),
      svg("text", { x: LEFT, y: HEIGHT - 6 }, clock(first)),
      svg("text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, clock(last)),
      lines.map(([, points], i) => svg("path", { class: `s${i}`, d: path(points, x, y) }))),
    h("ul", { class: "legend" }, latest.map(([name, value], i) => h("li", { class: `k${i}` }, `${i < 2 ? "—" : "- -"} ${name}: ${value === null ? "–" : say(value)}`))));
}

// What is not known leaves a gap.
function path(points, x, y) {
  let drawing = false;
  return points.map(([at, value]) => {
    if (value === null) {
      drawing = false;
      return "";
    }
    // Ends are round, so that a point between two gaps is a dot.
    const place = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    const step = drawing ? `L${place}` : `M${place}h0`;
    drawing = true;
    return step;
  }).join("");
}

// The next 1, 2 or 5 times a power of ten.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value);
}

function short(value) {
  return value >= 1e6 ? `${value / 1e6}M` : value >= 1e4 ? `${value / 1e3}k` : String(value);
}
