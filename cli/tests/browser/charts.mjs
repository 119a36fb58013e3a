// What is drawn on canvases: counted in their pixels, and read by mouse and keyboard from what stands beside them.

// As in the style sheet: lines, and what is written at the axes.
const LINES = { light: ["#a3150f", "#0b5c66", "#6b4fa0", "#7a4b00"], dark: ["#ff8f83", "#6cc7d3", "#c3abf3", "#ffd486"] };
LINES.paper = LINES.light;
const INK = { light: "#4c5560", dark: "#b0b8c1", paper: "#333333" };
const OTHER = { light: "dark", dark: "light", paper: "dark" };
const PIXELS_MIN = 3;

// In the page: what each line should show, of what the broker says.
async function given() {
  const points = await (await fetch("api/history", { cache: "no-store" })).json();
  const latency = (lane, what) => (p) => p.latency[lane]?.[what] ?? null;
  const read = {
    latency: [latency(0, "applied_ms_p99"), latency(1, "applied_ms_p99"), latency(0, "applied_ms_p50"), latency(1, "applied_ms_p50")],
    accepted: [(p) => p.accepted[0], (p) => p.accepted[1]],
    delivered: [(p) => p.delivered],
    refused: [(p) => p.refused],
  };
  const at = points.map((p) => p.at_us);
  return { at, lines: Object.fromEntries(Object.entries(read).map(([key, all]) => [key, all.map((of) => points.map(of))])) };
}

// In the page: pixels of each colour, of those that are lighter than grey, and of a line within its gaps.
function painted({ colours, lines, at }) {
  const near = (data, i, [r, g, b]) => data[i + 3] > 200 && Math.abs(data[i] - r) < 24 && Math.abs(data[i + 1] - g) < 24 && Math.abs(data[i + 2] - b) < 24;
  const rgb = (hex) => [1, 3, 5].map((from) => Number.parseInt(hex.slice(from, from + 2), 16));
  return [...document.querySelectorAll("hutong-chart")].map((chart) => {
    const canvas = chart.querySelector("canvas");
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const count = (holds) => {
      let n = 0;
      for (let i = 0; i < data.length; i += 4) n += holds(i) ? 1 : 0;
      return n;
    };
    const found = Object.fromEntries(Object.entries(colours).map(([name, hexes]) => [name, hexes.map((hex) => {
      const colour = rgb(hex);
      return count((i) => near(data, i, colour));
    })]));
    // The first and the last time stand at the edges of the place where lines are.
    const place = chart.plot.bbox;
    const [first, last] = [chart.times[0], chart.times.at(-1)];
    const dot = (8 * width) / canvas.getBoundingClientRect().width;
    const column = (time) => Math.round(place.left + ((time - first) / (last - first)) * place.width);
    const inside = lines[chart.dataset.key].map((values, line) => {
      const colour = rgb(colours.now[line]);
      const known = values.flatMap((value, i) => (value === null ? [] : [column(at[i])]));
      let n = 0;
      values.forEach((value, i) => {
        const x = column(at[i]);
        // A neighbour may be a second that the page was not told of; and dots are wider than a second.
        if (i < 2 || i + 2 >= values.length || values.slice(i - 2, i + 3).some((v) => v !== null) || at[i] > last || at[i] < first) return;
        if (known.some((other) => Math.abs(other - x) < dot)) return;
        for (let y = 0; y < height; y += 1) n += near(data, (y * width + x) * 4, colour) ? 1 : 0;
      });
      return n;
    });
    return { key: chart.dataset.key, found, inside, bright: count((i) => data[i + 3] > 200 && data[i] + data[i + 1] + data[i + 2] > 3 * 210) };
  });
}

// Each line that has a value is to be seen, in the colours of `light` (`light`, `dark` or `paper`) and in no others. A
// browser tells a page of another light or of paper with its next frame.
export async function drawn(page, expect, light, where) {
  let problems = [];
  for (let i = 0; i < 50; i += 1) {
    problems = await wrong(page, light, where);
    if (!problems.length) return;
    await page.waitForTimeout(50);
  }
  for (const problem of problems) expect(false, problem);
}

async function wrong(page, light, where) {
  const problems = [];
  const expect = (holds, what) => holds || problems.push(what);
  const { at, lines } = await page.evaluate(given);
  const colours = { now: LINES[light], before: LINES[OTHER[light]], ink: [INK[light]] };
  const all = await page.evaluate(painted, { colours, lines, at });
  expect(all.map(({ key }) => key).join(" ") === Object.keys(lines).join(" "), `${where}: charts: ${JSON.stringify(all)}`);
  for (const { key, found, inside, bright } of all) {
    lines[key].forEach((values, line) => {
      if (!values.some((v) => v !== null)) return;
      expect(found.now[line] >= PIXELS_MIN, `${where}: chart ${key}: line ${line} is not drawn in ${light}: ${JSON.stringify(found)}`);
      expect(inside[line] === 0, `${where}: chart ${key}: line ${line} goes on where nothing is known: ${inside[line]}`);
    });
    const strange = found.before.reduce((sum, n) => sum + n, 0);
    expect(strange === 0, `${where}: chart ${key} has colours of ${OTHER[light]} in ${light}: ${JSON.stringify(found)}`);
    expect(found.ink[0] >= PIXELS_MIN, `${where}: chart ${key}: nothing is written at its axes in ${light}: ${JSON.stringify(found)}`);
    if (light === "paper") expect(bright === 0, `${where}: chart ${key}: ${bright} bright pixels on white paper`);
  }
  return problems;
}

// In the page: the moment that is shown, the values, and where its cursor stands.
function legend(key) {
  const chart = document.querySelector(`hutong-chart[data-key=${key}]`);
  const [when, ...values] = [...chart.querySelectorAll(".legend li")];
  const slider = chart.querySelector("input");
  const line = chart.querySelector(".u-cursor-x").getBoundingClientRect();
  return {
    time: when.querySelector("time").dateTime, now: when.textContent === "Now", values: values.map((e) => e.textContent.split(": ").pop()),
    said: slider.getAttribute("aria-valuetext"), focused: slider === document.activeElement, cursor: line.left,
    first: chart.times[0], last: chart.times.at(-1), over: chart.querySelector(".u-over").getBoundingClientRect().toJSON(),
  };
}

const UNITS = { ms: [1, 0.5], s: [1000, 500], min: [60e3, 30e3], h: [3600e3, 1800e3], d: [86400e3, 43200e3] };

// Rounded as a person reads it; by hand, and not by what the page uses.
function same(text, value) {
  if (value === null) return text === "–";
  const [, digits, decimal, unit] = text.match(/^([\d,]+)(\.\d)?(?: (\w+))?$/) ?? [];
  if (!digits) return false;
  const [times, half] = unit ? UNITS[unit] : [1, 0.5];
  return Math.abs(Number(digits.replaceAll(",", "") + (decimal ?? "")) * times - value) <= (decimal ? half / 10 : half) + 1e-9;
}

// What the legend says of a moment is what the broker said of it.
function agrees(expect, shown, { at, lines }, key, where) {
  const index = at.findIndex((us) => new Date(us / 1000).toISOString() === shown.time);
  const values = index < 0 ? [] : lines[key].map((line) => line[index]);
  expect(values.length === shown.values.length && values.every((value, i) => same(shown.values[i], value)),
    `${where}: chart ${key} shows ${shown.values} at ${shown.time}, and the broker said ${JSON.stringify(values)}`);
  return values;
}

// A person points at charts, and moves along them by keyboard, while time goes on. English.
export async function read(page, expect) {
  const { at, lines } = await page.evaluate(given);
  let told = 0;
  for (const [key, all] of Object.entries(lines)) {
    const busy = at.flatMap((_, i) => (all.some((line) => line[i]) ? [i] : []));
    const wanted = new Set([...busy.slice(0, 2), ...busy.slice(-3, -1), Math.floor(at.length / 2)]);
    for (const index of wanted) {
      const before = await page.evaluate(legend, key);
      if (at[index] <= before.first || at[index] >= before.last) continue;
      const x = before.over.left + ((at[index] - before.first) / (before.last - before.first)) * before.over.width;
      await page.locator(`hutong-chart[data-key=${key}]`).scrollIntoViewIfNeeded();
      const { y, height } = await page.locator(`hutong-chart[data-key=${key}] .u-over`).boundingBox();
      await page.mouse.move(x, y + height / 2);
      const shown = await page.evaluate(legend, key);
      const values = agrees(expect, shown, await page.evaluate(given), key, "pointed at");
      told += values.filter(Boolean).length;
      // The line may have moved on while the mouse moved, by as much as came.
      const apart = Math.max(...at.slice(1).map((us, i) => us - at[i]));
      const off = Math.abs(Date.parse(shown.time) * 1000 - at[index]);
      expect(!shown.now && off <= apart + shown.last - before.last, `chart ${key}: pointed at ${at[index]}, and it shows ${shown.time}`);
    }
  }
  expect(told > 0, "nothing but nought was pointed at");
  await page.mouse.move(0, 0);
  expect((await page.evaluate(legend, "accepted")).now, "the legend does not go back to now");
  await by_keyboard(page, expect);
  await in_a_table(page, expect);
}

async function by_keyboard(page, expect) {
  await page.locator("hutong-chart[data-key=accepted] input").focus();
  await page.keyboard.press("End");
  for (let i = 0; i < 5; i += 1) await page.keyboard.press("ArrowLeft");
  const shown = await page.evaluate(legend, "accepted");
  agrees(expect, shown, await page.evaluate(given), "accepted", "by keyboard");
  expect(!shown.now && Date.parse(shown.time) * 1000 < shown.last, `by keyboard it shows ${shown.time}`);
  for (const value of shown.values) expect(shown.said.includes(value), `the slider says ${shown.said}, and the legend ${shown.values}`);
  // Pictures come, and the moment, the cursor and the focus stay with what was chosen.
  const newest = () => page.evaluate(() => document.querySelector("hutong-chart").times.at(-1));
  for (let i = 0; i < 300 && (await newest()) === shown.last; i += 1) await page.waitForTimeout(50);
  expect((await newest()) > shown.last, "no picture came to a chart that is looked at");
  const later = await page.evaluate(legend, "accepted");
  expect(later.time === shown.time && later.focused, `after a picture the moment ${shown.time} is ${later.time}, focus: ${later.focused}`);
  const place = later.over.left + ((Date.parse(later.time) * 1000 - later.first) / (later.last - later.first)) * later.over.width;
  expect(Math.abs(later.cursor - place) <= 2, `the cursor stands at ${later.cursor}, and its moment at ${place}`);
  await page.keyboard.press("End");
  expect((await page.evaluate(legend, "accepted")).now, "End does not go back to now");
}

// The same for who sees no picture.
async function in_a_table(page, expect) {
  await page.locator("hutong-chart[data-key=accepted] summary").click();
  await page.waitForSelector("hutong-chart[data-key=accepted] details table");
  const rows = await page.locator("hutong-chart[data-key=accepted] tbody tr").evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
  const { at, lines } = await page.evaluate(given);
  expect(rows.length > 1, `a table of ${rows.length} rows`);
  for (const [time, ...values] of rows) {
    const known = at.flatMap((us, i) => (new Date(us / 1000).toISOString().slice(11, 19) === time ? [i] : []));
    expect(known.some((i) => values.every((value, line) => same(value, lines.accepted[line][i]))), `the table says ${values} at ${time}`);
  }
}

// By the button of the page: what was drawn is drawn again.
export async function repainted(page, expect) {
  const of = () => page.evaluate(() => document.documentElement.dataset.theme);
  for (const light of ["dark", "light"]) {
    await page.locator("#theme").click();
    expect((await of()) === light, `the button leads to ${await of()}`);
    await drawn(page, expect, light, "after the button");
  }
  for (const light of ["dark", "light"]) {
    await page.evaluate(() => delete document.documentElement.dataset.theme);
    await page.emulateMedia({ colorScheme: light });
    await drawn(page, expect, light, "after the system");
  }
}
