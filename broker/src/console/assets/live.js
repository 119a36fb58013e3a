// What the broker says, as it says it. Pictures come by a stream; everything else is asked for.

const COOKIE = "hutong-identity";
const AGAIN_MS = 3000;
const API = "api";
// Pictures come each second, or a few seconds apart when the broker has much to do.
const SILENT_MS = 8000;

// `at`: when the picture came, by this machine's clock, to let ages go on between two pictures.
export const state = { picture: null, at: 0, up: false, error: null };
const listeners = new Set();
let source = null;
// Since the last picture. The broker ends old streams, and a new one is there at once: one failure is no news.
let failures = 0;

export function identity() {
  return localStorage.getItem(COOKIE) ?? "auditor/console";
}

function identify() {
  document.cookie = `${COOKIE}=${identity()}; path=/console; SameSite=Strict`;
}

export function listen(listener) {
  listeners.add(listener);
}

// Draws again what is shown.
export function tell() {
  listeners.forEach((listener) => listener(state));
}

// A stream may be there and bring nothing: what is shown is old then.
setInterval(() => {
  if (state.up && performance.now() - state.at > SILENT_MS) {
    state.up = false;
    tell();
  }
}, 1000);

function took(picture) {
  failures = 0;
  Object.assign(state, { picture, at: performance.now(), up: true, error: null });
  tell();
}

export function start() {
  identify();
  source = new EventSource(`${API}/live`);
  source.addEventListener("picture", (event) => took(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    failures += 1;
    // A line that broke comes again by itself; a refusal does not.
    if (source.readyState === EventSource.CLOSED) refused();
    else if (failures > 1) {
      state.up = false;
      tell();
    }
  });
}

// As many look as may have a stream, perhaps: others ask.
async function refused() {
  try {
    took(await get("picture"));
  } catch (error) {
    Object.assign(state, { up: false, error });
    tell();
  }
  setTimeout(start, AGAIN_MS);
}

export class Refused extends Error {
  constructor(answer, status) {
    super(answer.message ?? `HTTP ${status}`);
    this.chinese = answer.message_zh;
    this.reason = answer.reason;
    this.status = status;
  }
}

export async function get(path) {
  const response = await fetch(`${API}/${path}`, { cache: "no-store" });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer, response.status);
  return answer;
}

// The name of a platform, in the language of the page.
export function platform(code, language) {
  const known = state.picture?.platforms.find((p) => p.code === code);
  if (!known) return code ? String(code) : "-";
  return language === "zh" ? known.name_zh : known.name;
}

// Seconds since the picture was taken.
export function elapsed() {
  return state.at ? (performance.now() - state.at) / 1000 : 0;
}
