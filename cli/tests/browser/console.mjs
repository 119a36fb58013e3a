// Clicks through the console in a real browser and says what it found, as JSON on standard output.
//
//     node console.mjs MODULES URL FOLDER PHASE CODE ENTITY ISSUER
//
// MODULES has playwright-core and axe-core; pictures of the screen go into FOLDER. PHASE is `fault`, while the
// platform CODE does not apply what ISSUER said of ENTITY, or `healed`, or `gone`: it writes a line once a page is
// open, and the broker ends.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

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
const result = { problems: [], violations: [], outside: [], bytes: 0, first_paint_ms: null, seen: {}, overflow: [] };
const expect = (holds, what) => {
  if (!holds) result.problems.push(what);
};

const browser = await chromium.launch({ executablePath: process.env.HUTONG_TEST_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] });
try {
  if (phase === "gone") await gone();
  else {
    for (const [name, screen] of Object.entries(SCREENS)) {
      for (const locale of ["en-GB", "zh-CN"]) await look(name, screen, locale);
    }
    await click();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(result));

async function open(screen, locale) {
  const context = await browser.newContext({ ...screen, locale });
  const page = await context.newPage();
  page.setDefaultTimeout(15000);
  page.on("console", (message) => message.type() === "error" && result.problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => result.problems.push(`script: ${error.message}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) result.outside.push(request.url());
  });
  return [context, page];
}

async function shown(page) {
  await page.waitForSelector("main h1");
  await page.waitForSelector("#line.up");
  // What is asked for besides the picture has come when nothing waits.
  // Asked again and again from here: what playwright would put into the page to watch is stopped by the policy.
  const waits = () => /Waiting for the broker|正在等待代理/.test(document.querySelector("main").textContent);
  for (let i = 0; i < 200 && (await page.evaluate(waits)); i += 1) await page.waitForTimeout(50);
}

async function look(name, screen, locale) {
  const [context, page] = await open(screen, locale);
  const language = locale.slice(0, 2);
  await page.goto(url);
  await shown(page);
  if (name === "desktop" && language === "en") {
    const loaded = await page.evaluate(() => ({
      paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
      bytes: performance.getEntriesByType("resource").filter((e) => !e.name.includes("/api/")).reduce((sum, e) => sum + e.encodedBodySize, 0),
    }));
    result.first_paint_ms = loaded.paint;
    result.bytes = loaded.bytes;
  }
  for (const [what, hash] of Object.entries(PAGES)) {
    await page.evaluate((to) => { location.hash = to; }, hash);
    await shown(page);
    await page.screenshot({ path: path.join(folder, `${phase}-${what}-${name}-${language}.png`), fullPage: what !== "overview" });
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    for (const v of found.violations) result.violations.push(`${what} ${name} ${language}: ${v.id} (${v.impact}): ${v.nodes[0]?.html} ${v.nodes[0]?.failureSummary}`);
    if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1)) result.overflow.push(`${what} ${name} ${language}`);
    expect((await page.evaluate(() => document.documentElement.lang)).startsWith(language), `${what}: language ${locale}`);
  }
  if (name === "desktop") {
    await page.evaluate(() => { location.hash = "#/matrix"; });
    await shown(page);
    await page.emulateMedia({ media: "print" });
    await page.pdf({ path: path.join(folder, `${phase}-matrix-${language}.pdf`), landscape: true, printBackground: true });
  }
  await context.close();
}

// The page stays open when the broker ends: what it shows must not look like now.
async function gone() {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  await page.goto(url);
  await shown(page);
  result.seen.before = await page.locator("main .banner").first().textContent();
  // From here on the browser complains of its own.
  result.problems.length = 0;
  console.log("open");
  await page.waitForSelector("#line.down");
  await page.waitForSelector("main .old");
  result.seen.banner = await page.locator("main .banner").first().textContent();
  result.seen.alert = await page.locator("main .banner").first().getAttribute("role");
  result.seen.filter = await page.locator("main .old").evaluate((e) => getComputedStyle(e).filter);
  result.seen.good = await page.locator("main .banner.good").isVisible();
  await page.screenshot({ path: path.join(folder, `${phase}-overview-desktop-en.png`) });
  result.problems.length = 0;
  await context.close();
}

// As a person: by mouse and by keyboard.
async function click() {
  const [context, page] = await open(SCREENS.desktop, "en-GB");
  await page.goto(url);
  await shown(page);
  const banner = page.locator("main .banner").first();
  result.seen.banner = await banner.textContent();
  result.seen.title = await page.title();
  if (phase === "fault") {
    const first = page.locator(".findings > li").first();
    result.seen.finding = await first.textContent();
    expect(await first.evaluate((e) => e.getBoundingClientRect().bottom < innerHeight), "the worst is not on the first screen");
    await first.locator("p.who a").click();
    await shown(page);
    expect(page.url().endsWith(`#/platform/${code}`), `the finding leads to ${page.url()}`);
    await page.locator("main a[href^='#/record/']").first().click();
    await shown(page);
    result.seen.record = await page.locator("main").textContent();
    await page.locator(`main a[href^='#/trace/']`).first().click();
    await shown(page);
    result.seen.trace = await page.locator("main").textContent();
  }
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
  // Languages, light and dark stay after a reload.
  await page.locator("#language").click();
  expect((await page.locator("nav").textContent()).includes("总览"), "the language did not change");
  await page.locator("#theme").click();
  await page.reload();
  await shown(page);
  expect((await page.locator("nav").textContent()).includes("总览"), "the language did not stay");
  expect((await page.evaluate(() => document.documentElement.dataset.theme)) === "dark", "the theme did not stay");
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
  result.seen.cells = await page.locator("table.matrix tbody td").count();
  await context.close();
}
