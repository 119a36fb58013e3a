// A line chart by uPlot: what it draws on a canvas is also said in words, in a legend, and in a table that opens.

import { h, patch, svg, table } from "./dom.js";
import { clock, number } from "./format.js";
import { t } from "./words.js";

const HEIGHT = 220;
const LEFT = 56;
// What was longer ago is not how it is now.
const RECENT_US = 10e6;
// A table of every second would be read by nobody.
const TABLE_STEP_US = 10e6;
// Only the first is whole: the others let through what they lie upon.
const DASHES = [[], [8, 4], [3, 3], [8, 3, 2, 3]];
// On paper a canvas has the pixels that it was drawn with: more of them than a screen has.
const PAPER = { width: 640, scale: 3 };
// uPlot's place for a cursor that is not to be seen.
const NOWHERE = { left: -10, top: -10 };

const charts = new Set();
let paper = false;

// `lines`: [name, [[microseconds, value or null], ...]], up to four of them, all with the same times. `say` gives a
// value of the legend. `key` tells this chart from the others of its page.
export function chart(key, title, unit, lines, say = number) {
  const drawing = h("hutong-chart", { "data-key": key });
  drawing.given = { title, unit, lines, say };
  return h("figure", null, h("figcaption", null, `${title} (${unit})`), drawing);
}

// It stays as long as its page, and is given new values: `renew` is what `patch` calls instead of looking inside.
class Chart extends HTMLElement {
  given = null;
  // The moment that somebody looks at, in microseconds; none is now.
  at = null;
  times = [];

  connectedCallback() {
    this.host = h("div", { class: "plot", role: "img" });
    this.slider = h("input", { type: "range", min: "0", step: "1", oninput: () => this.slid() });
    this.legend = h("ul", { class: "legend" });
    this.values = h("details", { ontoggle: () => this.tabulate() }, h("summary"), h("div"));
    this.append(this.host, this.slider, this.legend, this.values);
    this.take();
    this.plot = this.made();
    charts.add(this);
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.host);
    this.say();
  }

  disconnectedCallback() {
    charts.delete(this);
    this.sizes.disconnect();
    this.plot.destroy();
  }

  renew(fresh) {
    this.given = fresh.given;
    this.take();
    this.plot.setData(this.data);
    this.say();
  }

  take() {
    const { lines } = this.given;
    this.times = lines[0][1].map(([at]) => at);
    this.data = [this.times.map((at) => at / 1e6), ...lines.map(([, points]) => points.map(([, value]) => value))];
    if (this.at !== null && this.at < this.times[0]) this.at = null;
  }

  made() {
    const plot = new window.uPlot(options(this), this.data, this.host);
    const { over } = plot;
    over.addEventListener("mousemove", () => this.look(plot.cursor.idx));
    over.addEventListener("mouseleave", () => this.look(null));
    return plot;
  }

  // Texts are drawn into the picture, so another scale is another picture.
  again() {
    this.plot.destroy();
    this.plot = this.made();
  }

  fit() {
    const width = this.host.clientWidth;
    if (!paper && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  slid() {
    this.look(Number(this.slider.value));
    this.mark();
  }

  // At the end of its line the moment goes on with the time.
  look(index) {
    this.at = index === null || index >= this.times.length - 1 ? null : this.times[index];
    this.say();
  }

  // The cursor stays with its moment, not with its place: the line moves on under it.
  mark() {
    this.plot.setCursor(this.at === null ? NOWHERE : { left: this.plot.valToPos(this.at / 1e6, "x"), top: 0 });
  }

  say() {
    const { title, unit, lines, say } = this.given;
    const word = (value) => (value === null ? "–" : say(value));
    const last = this.times.at(-1);
    const recent = ([at, value]) => value !== null && at >= last - RECENT_US;
    const now = lines.map(([name, points]) => [name, points.findLast(recent)?.[1] ?? null]);
    const index = this.at === null ? -1 : this.times.indexOf(this.at);
    const shown = index < 0 ? now : lines.map(([name, points]) => [name, points[index][1]]);
    const said = (all) => all.map(([name, value]) => `${name} ${word(value)}`).join(", ");
    const top = say(this.data.slice(1).flat().reduce((most, value) => Math.max(most, value ?? 0), 0));
    set(this.host, "aria-label", t("chart.said", { title, unit, said: said(now), top }));
    const when = index < 0 ? t("chart.now") : t("chart.at", { at: clock(this.at) });
    set(this.slider, "max", this.times.length - 1);
    set(this.slider, "aria-label", t("chart.moment", { title }));
    set(this.slider, "aria-valuetext", `${when}: ${said(shown)}`);
    this.slider.value = index < 0 ? this.times.length - 1 : index;
    patch(this.legend, h("ul", null,
      h("li", null, h("time", { datetime: new Date((this.at ?? last) / 1000).toISOString() }, when)),
      shown.map(([name, value], i) => h("li", { class: `k${i}` }, sample(i), ` ${name}: ${word(value)}`))));
    this.values.firstChild.textContent = t("chart.values");
    this.tabulate();
  }

  tabulate() {
    if (!this.values.open) return;
    const { title, unit, lines, say } = this.given;
    const rows = [];
    for (let i = this.times.length - 1, next = Infinity; i >= 0; i -= 1) {
      if (this.times[i] > next) continue;
      next = this.times[i] - TABLE_STEP_US;
      rows.push([clock(this.times[i]), ...lines.map(([, points]) => (points[i][1] === null ? "–" : say(points[i][1])))]);
    }
    patch(this.values.lastChild, h("div", null, table(`${title} (${unit})`, [[t("column.when")], ...lines.map(([name]) => [name, "n"])], rows, { titled: true })));
  }
}

function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// What a line looks like.
function sample(i) {
  return svg("svg", { class: "sample", viewBox: "0 0 30 6", "aria-hidden": "true" },
    svg("line", { class: `s${i}`, x1: 0, x2: 30, y1: 3, y2: 3, "stroke-dasharray": DASHES[i].join(" ") || null }));
}

function options(drawing) {
  const scale = paper ? PAPER.scale : 1;
  // Asked for at each drawing: colours are those of the style sheet, which change with the light.
  const style = getComputedStyle(drawing);
  const colour = (name) => () => style.getPropertyValue(paper ? `--paper-${name}` : `--${name}`).trim();
  const axis = {
    stroke: colour("soft"), font: `${12 * scale}px system-ui, sans-serif`, gap: 5 * scale,
    ticks: { show: false }, grid: { stroke: colour("rule"), width: scale },
  };
  return {
    width: (paper ? PAPER.width : drawing.host.clientWidth || PAPER.width) * scale,
    height: HEIGHT * scale,
    padding: [10 * scale, 12 * scale, 0, 0],
    legend: { show: false },
    // Nothing is dragged: the times go on, and what was chosen would be gone.
    cursor: { y: false, drag: { x: false, y: false, setScale: false } },
    scales: {
      x: { range: (_, first, last) => [first, Math.max(last, first + 1)] },
      y: { range: (_, least, most) => [0, ceiling(most)] },
    },
    axes: [
      { ...axis, space: 90 * scale, size: 28 * scale, values: (_, splits) => splits.map((at) => clock(at * 1e6)) },
      { ...axis, space: 36 * scale, size: LEFT * scale, values: (_, splits) => splits.map(short) },
    ],
    series: [{}, ...drawing.given.lines.map((_, i) => ({
      stroke: colour(`line-${i}`), width: 2 * scale, dash: DASHES[i].map((part) => part * scale),
      // The first is drawn first, and its dots look out from under others.
      points: { show: false, size: (drawing.given.lines.length - i) * 2 * scale + 3 * scale, fill: colour(`line-${i}`), filter: alone },
    }))],
    hooks: { draw: [() => drawing.plot && drawing.mark()] },
  };
}

// What is not known leaves a gap, and a value between two gaps is a dot: no line leads to it.
function alone({ data }, line) {
  const values = data[line];
  const known = (i) => (values[i] ?? null) !== null;
  return values.flatMap((_, i) => (known(i) && !known(i - 1) && !known(i + 1) ? [i] : []));
}

// The next round number.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value);
}

function short(value) {
  return value >= 1e6 ? `${value / 1e6}M` : value >= 1e4 ? `${value / 1e3}k` : String(value);
}

function print(on) {
  if (on === paper) return;
  paper = on;
  charts.forEach((one) => one.again());
}

const redraw = () => charts.forEach((one) => one.plot.redraw(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
// Not every browser tells both.
matchMedia("print").addEventListener("change", ({ matches }) => print(matches));
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

customElements.define("hutong-chart", Chart);
