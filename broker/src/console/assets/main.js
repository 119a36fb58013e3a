// The frame: which page is shown, in which language and light, and whether the line to the broker is up.

import { h, patch } from "./dom.js";
import { time } from "./format.js";
import * as live from "./live.js";
import * as words from "./words.js";
import { t } from "./words.js";
import { drills } from "./drills.js";
import { entity, find, record, trace } from "./find.js";
import { matrix } from "./matrix.js";
import { overview } from "./overview.js";
import { platform } from "./platform.js";
import { rates } from "./rates.js";
import { refused } from "./refused.js";

// Each makes a page of the rest of its address: `draw(state)` gives its content, as often as something changes;
// `load()`, if it has one, asks for what is not in the picture.
const PAGES = { overview, matrix, platform, rates, find, entity, trace, record, refused, drills };
const main = document.getElementById("main");
let page = null;
let worst = null;

// Somebody may have cut an address in the middle of a letter.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function route() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  if (location.hash === "#main") return;
  const make = Object.hasOwn(PAGES, name) ? PAGES[name] : overview;
  page = make(...rest);
  page.name = name || "overview";
  main.replaceChildren();
  draw();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  load();
}

// Asks again, and draws what came; what is shown meanwhile stays.
async function load() {
  const asking = page;
  if (!asking?.load) return;
  try {
    await asking.load();
    asking.error = null;
  } catch (error) {
    asking.error = error;
  }
  if (asking === page) draw();
}

function draw() {
  frame();
  const box = h("div");
  if (page.error) box.append(problem(page.error));
  else if (live.state.error && !live.state.picture) box.append(problem(live.state.error));
  else {
    // What was good then says nothing of now.
    const { picture, up } = live.state;
    const old = picture && !up;
    if (old) box.append(h("p", { role: "alert", class: "banner critical" }, t("line.old", { at: time(picture.now_us) })));
    const drawn = [page.draw(live.state)].flat(Infinity).filter(Boolean);
    box.append(h("div", { class: old ? "old" : null }, drawn));
  }
  patch(main, box);
}

function problem(error) {
  return h("div", { role: "alert", class: "banner critical" },
    h("p", null, t("problem.title")),
    h("p", null, [error.reason, words.either(error.message, error.chinese)].filter(Boolean).join(": ")),
    error.status === 401 || error.status === 403 ? h("p", null, t("problem.identity", { who: live.identity() })) : null);
}

function frame() {
  const { picture, up } = live.state;
  document.documentElement.lang = words.current() === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = t(element.dataset.word);
  for (const link of document.querySelectorAll("[data-page]")) {
    const current = link.dataset.page === page.name || (link.dataset.page === "find" && ["entity", "trace", "record"].includes(page.name));
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const language = document.getElementById("language");
  language.textContent = words.current() === "zh" ? "English" : "中文";
  language.lang = words.current() === "zh" ? "en" : "zh";
  document.getElementById("nav").setAttribute("aria-label", t("nav.name"));
  const line = document.getElementById("line");
  line.className = `line ${up ? "up" : "down"}`;
  line.textContent = up ? t("line.up") : t("line.down");
  const bad = picture?.findings.filter((f) => f.severity === "critical" || f.severity === "warning") ?? [];
  document.title = `${bad.length ? `(${bad.length}) ` : ""}${t("page." + page.name)} · Hutong 互通`;
  if (picture) {
    document.getElementById("foot").textContent = t("foot", { version: picture.version, log: picture.log_id, since: time(picture.started_at_us), now: time(picture.now_us) });
  }
  say(bad);
}

// To a screen reader, and only when something else is the worst, or is to be said in another language.
function say(bad) {
  const now = bad.length ? `${words.current()} ${bad.length} ${bad[0].platform} ${bad[0].why} ${bad[0].severity}` : words.current();
  if (now === worst || !live.state.picture) return;
  worst = now;
  document.getElementById("said").textContent = bad.length
    ? t("said.bad", { n: bad.length, who: live.platform(bad[0].platform, words.current()), why: t("why." + bad[0].why) })
    : t("said.good");
}

function theme(change) {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (!change) return;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("hutong-theme", root.dataset.theme);
}

async function begin() {
  const kept = localStorage.getItem("hutong-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  await words.load();
  document.getElementById("theme").addEventListener("click", () => theme(true));
  document.getElementById("language").addEventListener("click", () => {
    words.change();
    draw();
  });
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  addEventListener("hashchange", route);
  live.listen(() => draw());
  live.start();
  route();
  // What is not in the picture is asked for again now and then, as long as somebody looks.
  setInterval(() => document.visibilityState === "visible" && page.every && load(), 5000);
}

begin();
