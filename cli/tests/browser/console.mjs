// Clicks through the console in a real browser and says what it found, as JSON on standard output.
//
//     node console.mjs MODULES URL FOLDER PHASE CODE ENTITY ISSUER
//
// MODULES has playwright-core and axe-core; pictures of the screen go into FOLDER. PHASE is `fault`, while the
// platform CODE does not apply what ISSUER said of ENTITY; or `healed`; or `surge`, while CODE applies bulk too slowly;
// or `gone`: it writes a line once a page is open, and the broker ends; or `idle`: it writes that line too, and the page
// stays open until standard input ends.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { drawn, read, repainted } from "./charts.mjs";
import { unreadable } from "./paper.mjs";
import { foreign } from "./words.mjs";

const [modules, url, folder, phase, code, entity, issuer] = process.argv.slice(2);
const require = createRequire(path.join(modules, "package.json"));
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const PAGES = {
  overview: "#/", matrix: "#/matrix", platform: `#/platform/${code}`, rates: "#/rates", find: "#/find",
  entity: `#/entity/${entity}`, trace: `#/trace/${entity}/${issuer}/health_code/0`, refused: "#/refused", drills: "#/drills",
};
const SCREENS = {
  desktop: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
};
// Where something is wrong, the worst is the first thing on these.
const FIRST = { overview: ".findings > li", platform: ".findings > li", matrix: "table.stack tbody tr" };
// A4, landscape, without the margins of the style: 297 mm less twice 12 mm, of which 25.4 are 96 pixels.
const PAPER_WIDTH = 1031;
const wrong = phase === "fault" || phase === "surge";
const result = { problems: [], violations: [], outside: [], bytes: 0, first_paint_ms: null, seen: {}, overflow: [], hidden: [] };
const expect = (holds, what) => {
  if (!holds) result.problems.push(what);
};

const browser = await chromium.launch({ executablePath: process.env.HUTONG_TEST_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] });
try {
  if (phase === "gone") await gone();
  else if (phase === "idle") await idle();
  else {
    const looks = Object.entries(SCREENS).flatMap(([name, screen]) => ["en-GB", "zh-CN"].map((locale) => [name, screen, locale]));
    // The first alone, since the time until it paints is measured; then as many at a time as there are processors, mostly.
    await look(...looks.shift());
    const one = async () => {
      while (looks.length) await look(...looks.shift());
    };
    await Promise.all([one(), one()]);
    await click();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(result));

async function open(screen, locale) {
  const context = await browser.newContext({ ...screen, locale });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  context.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) result.outside.push(request.url());
  });
  page.on("console", (message) => message.type() === "error" && result.problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => result.problems.push(`script: ${error.message}`));
  return [context, page];
}

async function shown(page) {
  const title = await page.waitForSelector("main h1").catch(() => null);
  if (!title) throw new Error(`there is no page at ${page.url()}: ${await page.locator("main").textContent()}`);
  await page.waitForSelector("#line.up");
  // What is asked for besides the picture has come when nothing waits.
  // Asked again and again from here: what playwright would put into the page to watch is stopped by the policy.
  const waits = () => /Waiting for the broker|正在等待代理/.test(document.querySelector("main").textContent);
  for (let i = 0; i < 200 && (await page.evaluate(waits)); i += 1) await page.waitForTimeout(50);
}

async function accessible(page, where) {
  if (!(await page.evaluate(() => Boolean(window.axe)))) {
    await page.evaluate(axe);
    // Its rule of contrast takes most of the time. Of cells alike in a table it is shown one; `unreadable` looks at all texts.
    await page.evaluate(() => window.axe.configure({ rules: [{ id: "color-contrast", selector: "*:not([data-alike], [data-alike] *)" }] }));
  }
  const found = await page.evaluate(() => {
    const seen = new Set();
    for (const [i, table] of document.querySelectorAll("table").entries()) {
      for (const cell of table.querySelectorAll("tbody td, tbody th")) {
        const kind = [i, ...[cell, ...cell.querySelectorAll("*")].map((e) => `${e.tagName} ${e.getAttribute("class")}`)].join("|");
        cell.toggleAttribute("data-alike", seen.has(kind));
        seen.add(kind);
      }
    }
    return window.axe.run(document, { resultTypes: ["violations"] });
  });
  for (const v of found.violations) result.violations.push(`${where}: ${v.id} (${v.impact}): ${v.nodes[0]?.html} ${v.nodes[0]?.failureSummary}`);
  for (const text of await page.evaluate(unreadable, false)) result.violations.push(`${where}: ${text}`);
}

async function look(name, screen, locale) {
  const [context, page] = await open(screen, locale);
  const language = locale.slice(0, 2);
  await page.goto(url);
  await shown(page);
  if (name === "desktop" && language === "en") {
    const loaded = await page.evaluate(() => {
      const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].filter((e) => !e.name.includes("/api/"));
      return {
        paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
        names: files.map((e) => new URL(e.name).pathname.split("/").pop() || "index.html"),
        bytes: files.reduce((sum, e) => sum + e.encodedBodySize, 0),
      };
    });
    for (const file of ["index.html", "words.en.json", "words.zh.json", "uPlot-1.6.32.iife.min.js"]) expect(loaded.names.includes(file), `${file} is not among what was counted: ${loaded.names}`);
    result.first_paint_ms = loaded.paint;
    result.bytes = loaded.bytes;
  }
  for (const [what, hash] of Object.entries(PAGES)) {
    await page.evaluate((to) => { location.hash = to; }, hash);
    await shown(page);
    await page.screenshot({ path: path.join(folder, `${phase}-${what}-${name}-${language}.png`), fullPage: what !== "overview" });
    await accessible(page, `${what} ${name} ${language}`);
    // Not against innerWidth: on a phone that grows with what sticks out.
    const { width } = screen.viewport;
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    if (wide > width) result.overflow.push(`${what} ${name} ${language}: ${wide} of ${width}`);
    for (const text of await page.evaluate(clipped, width)) result.hidden.push(`${what} ${name} ${language}: ${text}`);
    if (wrong && what in FIRST) await worst_first(page, what, screen.viewport, `${what} ${name} ${language}`);
    expect((await page.evaluate(() => document.documentElement.lang)).startsWith(language), `${what}: language ${locale}`);
    for (const text of await page.evaluate(foreign, language)) expect(false, `${what} ${name} ${language}: not in its language: ${text}`);
    if (what === "rates") await drawn(page, expect, name === "dark" ? "dark" : "light", `rates ${name} ${language}`);
  }
  if (name === "dark") {
    await page.evaluate(() => { location.hash = "#/rates"; });
    await shown(page);
    await page.emulateMedia({ media: "print" });
    await page.waitForSelector("hutong-chart canvas", { state: "visible" });
    await drawn(page, expect, "paper", `rates printed ${language}`);
    await page.screenshot({ path: path.join(folder, `${phase}-rates-paper-${language}.png`), fullPage: true });
    await page.pdf({ path: path.join(folder, `${phase}-rates-${language}.pdf`), format: "A4", landscape: true, printBackground: true });
    await page.emulateMedia({ media: "screen" });
    await drawn(page, expect, "dark", `rates after printing ${language}`);
    for (const [what, hash] of Object.entries(PAGES)) await on_paper(page, what, hash, `print of dark ${language}`);
    const ink = await page.evaluate(() => {
      const style = getComputedStyle(document.documentElement);
      return ["--back", "--ink", "--line-1"].map((name) => style.getPropertyValue(name).trim());
    });
    expect(ink.join(" ") === "#fff #000 #0b5c66", `print ${language}: what is dark on the screen is ${ink} on paper`);
  }
  if (name === "desktop") {
    await page.evaluate(() => { location.hash = "#/matrix"; });
    await shown(page);
    await page.emulateMedia({ media: "print" });
    await page.setViewportSize({ width: PAPER_WIDTH, height: 700 });
    const printed = await page.evaluate(() => ({
      columns: [...document.querySelectorAll("table.matrix thead th")].map((e) => e.getBoundingClientRect()).map(({ left, right }) => [left, right]),
      navigation: [...document.querySelectorAll("nav, nav a")].some((e) => e.getClientRects().length),
    }));
    expect(printed.columns.length > 2, `print ${language}: ${printed.columns.length} columns`);
    const cut = printed.columns.filter(([left, right]) => left < 0 || right > PAPER_WIDTH || right <= left);
    expect(!cut.length, `print ${language}: columns beyond a page of ${PAPER_WIDTH}: ${JSON.stringify(cut)}`);
    expect(!printed.navigation, `print ${language}: the navigation is printed`);
    await page.pdf({ path: path.join(folder, `${phase}-matrix-${language}.pdf`), format: "A4", landscape: true, printBackground: true });
    for (const [what, hash] of Object.entries(PAGES)) {
      await on_paper(page, what, hash, `print ${language}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(wide <= PAPER_WIDTH, `print ${language}: ${what} is ${wide} wide on a page of ${PAPER_WIDTH}`);
    }
  }
  await context.close();
}

async function on_paper(page, what, hash, where) {
  // What tells that a page is shown is not printed.
  await page.emulateMedia({ media: "screen" });
  await page.evaluate((to) => { location.hash = to; }, hash);
  await shown(page);
  await page.emulateMedia({ media: "print" });
  for (const text of await page.evaluate(unreadable, true)) expect(false, `${where}: ${what}: ${text}`);
}

// In the page: texts that are not to be seen in whole. The grid of pairs alone may be wider than the screen.
function clipped(width) {
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest(".sr, .skip, noscript, .scroll:has(.matrix)") || !parent.checkVisibility()) continue;
    // On a phone each cell says its column.
    if (parent.closest(".stack thead") && getComputedStyle(parent.closest("thead")).position === "absolute") continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      let whole = box.left >= -1 && box.right <= width + 1;
      for (let e = parent; e && e !== document.body; e = e.parentElement) {
        const style = getComputedStyle(e);
        if (style.overflowX === "visible" && style.overflowY === "visible") continue;
        const edge = e.getBoundingClientRect();
        whole &&= box.left >= edge.left - 1 && box.right <= edge.right + 1 && box.top >= edge.top - 1 && box.bottom <= edge.bottom + 1;
      }
      if (!whole) found.add(node.data.trim());
    }
    if (parent.closest("svg") && range.getBoundingClientRect().height < 9) found.add(`too small: ${node.data.trim()}`);
  }
  return [...found];
}

// What a person sees without doing anything names the worst.
async function worst_first(page, what, { width, height }, where) {
  const first = page.locator(FIRST[what]).first();
  const box = await first.evaluate((e) => {
    const { left, top, right, bottom } = e.getBoundingClientRect();
    return { left, top, right, bottom, scrolled: scrollY };
  });
  expect(box.left >= 0 && box.top >= 0 && box.right <= width && box.bottom <= height && box.scrolled === 0,
    `${where}: the worst is not within the first ${width} x ${height}: ${JSON.stringify(box)}`);
  const worst = await page.evaluate(async (sick) => {
    const picture = await (await fetch("api/picture", { cache: "no-store" })).json();
    const platform = picture.platforms.find((p) => p.code === sick);
    return { found: picture.findings[0].platform, names: [platform.name, platform.name_zh] };
  }, Number(code));
  expect(worst.found === Number(code), `${where}: the worst is ${worst.found}, and not ${code}`);
  const text = await first.textContent();
  const named = what === "platform" ? /■|▲/.test(text) : worst.names.some((n) => text.includes(n));
  expect(named && !/✓/.test(text), `${where}: the first thing is ${text}`);
}

// The page stays open when the broker ends: what it shows must not look like now.
async function gone() {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  await page.goto(url);
  await shown(page);
  result.seen.before = await page.locator("main .banner").first().textContent();
  // From here on the browser complains of its own.
  const before = result.problems.splice(0);
  console.log("open");
  await page.waitForSelector("#line.down");
  await page.waitForSelector("main .old");
  result.seen.banner = await page.locator("main .banner").first().textContent();
  result.seen.alert = await page.locator("main .banner").first().getAttribute("role");
  result.seen.filter = await page.locator("main .old").evaluate((e) => getComputedStyle(e).filter);
  result.seen.good = await page.locator("main .banner.good").isVisible();
  await page.screenshot({ path: path.join(folder, `${phase}-overview-desktop-en.png`) });
  // Of the line that is gone, and not of what the page does about it.
  const since = result.problems.splice(0);
  result.problems.push(...before, ...since.filter((problem) => !/^console: Failed to load resource/.test(problem)));
  await context.close();
}

// A stream that ends comes again: only if it does not, the page says so. And without a place for a stream it asks.
async function streams(page) {
  const banner = () => page.locator("main .banner[role=alert]").filter({ hasText: /No line|线路/ }).count();
  const end = (times) => page.evaluate((n) => {
    const { last } = window.streams;
    for (let i = 0; i < n; i += 1) last.dispatchEvent(new Event("error"));
    return document.querySelector("#line").className;
  }, times);
  expect((await end(1)) === "line up" && !(await banner()), "a stream that ended once is told as if the line were down");
  expect((await end(2)) === "line down", "a line that does not come again is not told");
  await page.waitForSelector("#line.up");
  await without_a_stream("one that had none", () => []);
  // Its first stream ends after a picture, and there is no place for another.
  await without_a_stream("one whose stream ended", (picture) => [`retry: 100\nevent: picture\ndata: ${picture}\n\n`]);
}

// `bodies`: what streams bring before they end, the first first; after them there is none.
async function without_a_stream(what, bodies) {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  const problems = result.problems.splice(0);
  const left = bodies(JSON.stringify(await (await context.request.get(`${url}api/picture`, { headers: { "hutong-identity": "auditor/console" } })).json()));
  const asked = { streams: 0, pictures: 0 };
  page.on("request", (request) => request.url().endsWith("/api/picture") && (asked.pictures += 1));
  await page.route("**/api/live", (route) => {
    asked.streams += 1;
    const body = left.shift();
    return body ? route.fulfill({ status: 200, contentType: "text/event-stream", body }) : route.fulfill({ status: 503, contentType: "application/json", body: "{}" });
  });
  await page.goto(url);
  const some = await page.waitForSelector("main h1").catch(() => null);
  expect(some, `a page without a stream shows nothing: ${what}`);
  const at = () => page.locator("#foot").textContent();
  const changes = async () => {
    const before = await at();
    for (let i = 0; i < 300 && (await at()) === before; i += 1) await page.waitForTimeout(50);
    return (await at()) !== before;
  };
  // One change may be that of the stream; the second is not.
  expect((await changes()) && (await changes()), `a page without a stream stands still: ${what}: ${JSON.stringify(asked)}`);
  expect(asked.pictures > 0, `a page without a stream does not ask: ${what}: ${JSON.stringify(asked)}`);
  expect(await page.locator("#line.up").count(), `a page that asks says that it has no line: ${what}`);
  // The refusals are what it was made to see.
  const since = result.problems.splice(0);
  result.problems.push(...problems, ...since.filter((problem) => !/^console: Failed to load resource/.test(problem)));
  await context.close();
}

// The page stays open, and pictures come.
async function idle() {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  await page.goto(url);
  await shown(page);
  const taken = () => page.locator("#foot").textContent();
  result.seen.before = await taken();
  console.log("open");
  for await (const nothing of process.stdin) expect(!nothing.length, "nobody has anything to say");
  result.seen.after = await taken();
  result.seen.up = await page.locator("#line.up").isVisible();
  await context.close();
}

// A report of a drill opens in a page of its own, which may do nothing and is no wider than a phone.
async function report(page, context) {
  await page.locator("nav a[data-page=drills]").click();
  await shown(page);
  const link = page.locator("main table a").first();
  result.seen.reports = await page.locator("main table").textContent();
  const [opened] = await Promise.all([context.waitForEvent("page"), link.click()]);
  await opened.waitForLoadState();
  result.seen.report = await opened.locator("body").textContent();
  for (const [name, { viewport }] of Object.entries({ desktop: SCREENS.desktop, phone: SCREENS.phone })) {
    await opened.setViewportSize(viewport);
    await opened.screenshot({ path: path.join(folder, `${phase}-report-${name}.png`), fullPage: true });
    const wide = await opened.evaluate(() => document.documentElement.scrollWidth);
    if (wide > viewport.width) result.overflow.push(`report ${name}: ${wide} of ${viewport.width}`);
  }
  await opened.close();
}

// What was refused and why, and how fast it goes.
async function refusals_and_rates(page) {
  await page.locator("nav a[data-page=refused]").click();
  await page.waitForSelector("nav a[data-page=refused][aria-current]");
  await shown(page);
  result.seen.letters = await page.locator("main table").first().textContent();
  result.seen.refused = await page.locator("main table").nth(1).textContent();
  await page.locator("nav a[data-page=rates]").click();
  await page.waitForSelector("nav a[data-page=rates][aria-current]");
  await shown(page);
  await read(page, expect);
  await repainted(page, expect);
}

// In the page: what the cell of a pair shows, by the links of its row and its column.
function cell([row, column]) {
  const at = (all, wanted) => [...all].findIndex((e) => e.querySelector(`a[href="#/platform/${wanted}"]`));
  const table = document.querySelector("table.matrix");
  // Before the first column are the names of the rows.
  const line = table.tBodies[0].rows[at(table.tBodies[0].rows, row)];
  const { className, textContent } = line.cells[at(table.tHead.rows[0].cells, column)];
  return { className, text: textContent };
}

// Of a pair: who receives and who issues are not the same, and each stands in a row or a column of its own.
async function cells(page) {
  await page.locator("nav a[data-page=matrix]").click();
  await page.waitForSelector("table.matrix tbody td");
  const read = (pair) => page.evaluate(cell, pair);
  const [late, mirror] = [await read([code, issuer]), await read([issuer, code])];
  expect(late.className === "critical" && /^■\d+[smh]/.test(late.text), `the pair that is late shows ${JSON.stringify(late)}`);
  expect(mirror.className === "" && /^·/.test(mirror.text), `its mirror image shows ${JSON.stringify(mirror)}`);
  // Everything else in its lane, and not in the other: what the broker says that is outstanding, at that platform.
  const said = await page.evaluate(async (sick) => {
    const { platforms, matrix } = await (await fetch("api/picture", { cache: "no-store" })).json();
    const codes = platforms.map((p) => p.code);
    const of = (lane) => matrix.cells[lane].filter(([row]) => codes[row] === sick).map(([, column]) => codes[column]);
    return { codes, lanes: [of(0), of(1)] };
  }, Number(code));
  expect(said.lanes[0].some((from) => !said.lanes[1].includes(from)), `nobody is late in one lane alone: ${JSON.stringify(said.lanes)}`);
  for (const [lane, late_of] of said.lanes.entries()) {
    const button = page.locator(".switch button").nth(lane);
    await button.click();
    await page.waitForSelector(`.switch button:nth-of-type(${lane + 1})[aria-pressed=true]`);
    for (const from of said.codes.filter((other) => other !== Number(code))) {
      const { text } = await read([code, from]);
      const shows = !/^[·–]/.test(text);
      expect(shows === late_of.includes(from), `lane ${lane}: of ${from} the cell of ${code} shows ${text}, and the broker says ${JSON.stringify(late_of)}`);
    }
  }
  await page.locator(".switch button").first().click();
}

// Find a record by its place in the log, as an address or a line of a log has it.
async function by_place(page, place) {
  await page.locator("nav a[data-page=find]").click();
  await page.waitForSelector("nav a[data-page=find][aria-current]");
  await page.locator("#sought").fill(place);
  await page.keyboard.press("Enter");
  await page.waitForURL((to) => to.hash === `#/record/${place}`);
  await page.waitForSelector("main table");
  const text = await page.locator("main").textContent();
  expect(text.includes(entity), `what was found at ${place}: ${text}`);
  const known = await page.evaluate(async (at) => (await fetch(`api/record/${at}`, { cache: "no-store" })).json(), place);
  const when = new Date(known.durable_at_us / 1000).toISOString().replace("T", " ").slice(0, 23);
  for (const part of [`record ${place.split("/").pop()},`, `${place.split("/")[1]},`, when, known.producer, ...known.deltas.map((d) => d.entity)]) {
    expect(text.includes(part), `what was found at ${place} does not say ${part}: ${text}`);
  }
}

// Each page in turn: what is shown when somebody asks for the other language is all said in that.
async function other_language(page) {
  for (const [what, hash] of Object.entries(PAGES)) {
    await page.evaluate((to) => { location.hash = to; }, hash);
    await shown(page);
    for (const language of ["zh", "en"]) {
      await page.locator("#language").click();
      for (const text of await page.evaluate(foreign, language)) expect(false, `${what}, after the button to ${language}: not in its language: ${text}`);
    }
  }
}

// As a person: by mouse and by keyboard.
async function click() {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  await page.addInitScript(() => {
    const Real = window.EventSource;
    window.streams = { last: null };
    window.EventSource = class extends Real {
      constructor(...all) {
        super(...all);
        window.streams.last = this;
      }
    };
  });
  await page.goto(url);
  await shown(page);
  const banner = page.locator("main .banner").first();
  result.seen.banner = await banner.textContent();
  result.seen.title = await page.title();
  const first = page.locator(".findings > li").first();
  if (wrong) result.seen.finding = await first.textContent();
  if (phase === "healed") await streams(page);
  if (phase === "surge") {
    result.seen.figures = await page.locator("dl.figures").textContent();
    await page.locator("nav a[data-page=matrix]").click();
    await shown(page);
    result.seen.lane = await page.locator(".switch button[aria-pressed=true]").textContent();
    await context.close();
    return;
  }
  let place = null;
  if (phase === "fault") {
    await cells(page);
    await page.locator("nav a[data-page=overview]").click();
    await shown(page);
    await first.locator("p.who a").click();
    await shown(page);
    expect(page.url().endsWith(`#/platform/${code}`), `the finding leads to ${page.url()}`);
    await page.locator("main a[href^='#/record/']").first().click();
    await shown(page);
    result.seen.record = await page.locator("main").textContent();
    await accessible(page, "a record that a click led to");
    place = page.url().split("#/record/")[1];
    await page.locator(`main a[href^='#/trace/']`).first().click();
    await shown(page);
    result.seen.trace = await page.locator("main").textContent();
  }
  if (phase === "fault") await refusals_and_rates(page);
  await report(page, context);
  // Find by an area's path and by the entity.
  await page.locator("nav a[data-page=find]").click();
  await page.locator("#sought").fill("安徽省/宿州市/泗县");
  await page.keyboard.press("Enter");
  await page.waitForURL(/#\/entity\//);
  await shown(page);
  await page.locator("#sought").fill(entity);
  await page.locator("form button").click();
  await page.waitForURL(new RegExp(entity));
  await page.waitForSelector("main table");
  result.seen.entity = await page.locator("main").textContent();
  await accessible(page, "what was found");
  if (phase === "fault") await by_place(page, place);
  if (phase === "fault") await other_language(page);
  // Languages, light and dark stay after a reload.
  await page.locator("#language").click();
  expect((await page.locator("nav").textContent()).includes("总览"), "the language did not change");
  await page.locator("#theme").click();
  await page.reload();
  await shown(page);
  expect((await page.locator("nav").textContent()).includes("总览"), "the language did not stay");
  expect((await page.evaluate(() => document.documentElement.dataset.theme)) === "dark", "the theme did not stay");
  await accessible(page, "in Chinese and dark by its own buttons");
  await page.locator("#language").click();
  // The keyboard alone: skip link, then a link of the navigation, and the other lane without losing the focus.
  await page.keyboard.press("Home");
  await page.evaluate(() => document.body.focus());
  await page.locator("#skip").focus();
  await page.keyboard.press("Enter");
  expect((await page.evaluate(() => document.activeElement.id)) === "main", "the skip link does not lead to the content");
  await page.locator("nav a[data-page=matrix]").focus();
  await page.keyboard.press("Enter");
  await shown(page);
  const bulk = page.locator(".switch button").nth(1);
  await bulk.focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector(".switch button:nth-of-type(2)[aria-pressed=true]");
  expect(await bulk.evaluate((e) => e === document.activeElement), "the button of the lane lost the focus");
  await accessible(page, "the other lane");
  result.seen.cells = await page.locator("table.matrix tbody td").count();
  await context.close();
}
