// What an operator must know first: who has not applied what, since when, why, and what to do. Worst first.

import { h, prose, table } from "./dom.js";
import { bytes, latency as latency_of, number, seconds, sign, time } from "./format.js";
import * as live from "./live.js";
import { current, t } from "./words.js";

const name = (code) => live.platform(code, current());

// How bad something is, by a sign, a colour and a word: that of the severity, or one of its own.
export function tag(severity, word) {
  return h("span", { class: `tag ${severity}` }, h("span", { "aria-hidden": "true" }, `${sign(severity)} `), word ?? t("severity." + severity));
}

export function overview() {
  return {
    draw({ picture }) {
      if (!picture) return h("p", null, t("wait"));
      const bad = picture.findings.filter((f) => f.severity === "critical" || f.severity === "warning");
      const notes = picture.findings.filter((f) => f.severity === "note");
      return [
        h("h1", null, t("page.overview")),
        banner(picture, bad),
        bad.length ? h("ul", { class: "findings" }, bad.map(finding)) : null,
        h("h2", null, t("now.title")),
        figures(picture),
        h("h2", null, t("platforms.title")),
        platforms(picture),
        notes.length ? h("details", { "data-key": "notes" }, h("summary", null, t("notes.title", { n: notes.length })),
          h("ul", null, notes.map((f) => h("li", null, h("a", { href: `#/platform/${f.platform}` }, name(f.platform)), f.subscription ? ` ${f.subscription}` : "", ": ", t("why." + f.why), " ", prose(t("do." + f.why)))))) : null,
      ];
    },
  };
}

function banner(picture, bad) {
  const severity = bad[0]?.severity ?? "good";
  const words = bad.length ? t("banner.bad", { n: bad.length }) : good(picture.subscriptions);
  return h("p", { class: `banner ${severity}` }, h("span", { "aria-hidden": "true" }, `${sign(severity)} `), words);
}

// Within the bounds is not yet applied: in a surge bulk may wait for a while.
function good(subscriptions) {
  const n = subscriptions.length;
  const [urgent, bulk] = [0, 1].map((lane) => Math.max(0, ...subscriptions.map((s) => s.lag[lane].seconds)));
  if (Math.max(urgent, bulk) < 1) return t("banner.good", { n });
  return t("banner.within", { n, urgent: seconds(urgent), bulk: seconds(bulk) });
}

// Also on the page of a platform.
export function finding(f) {
  const age = f.seconds + (f.records ? live.elapsed() : 0);
  return h("li", { class: f.severity, "data-key": `${f.platform}/${f.subscription}/${f.why}` },
    h("p", { class: "who" }, tag(f.severity), " ",
      f.platform ? h("a", { href: `#/platform/${f.platform}` }, `${name(f.platform)} ${f.platform}`) : t("broker"),
      f.subscription ? h("span", { class: "soft" }, ` ${f.subscription}`) : null),
    h("p", null, what(f, age)),
    urgent(f),
    h("p", null, h("strong", null, t("label.why")), " ", t("why." + f.why)),
    h("p", null, h("strong", null, t("label.do")), " ", prose(t("do." + f.why))),
    f.offset ? h("p", null, h("a", { href: `#/record/${f.issuer}/${f.lane}/${f.shard}/${f.offset}` }, t("what.which", { offset: f.offset, issuer: name(f.issuer) }))) : null);
}

// In a surge: bulk waits, and colours do not.
function urgent(f) {
  if (f.lane !== "bulk" || !f.records) return null;
  const own = live.state.picture?.subscriptions.find((s) => s.platform === f.platform && s.subscription === f.subscription);
  if (!own) return null;
  const { records, seconds: waits } = own.lag[0];
  return h("p", null, records ? t("what.urgent_waits", { age: seconds(waits) }) : t("what.urgent_applied"));
}

function what(f, age) {
  const since = time(f.since_us);
  if (f.why === "connector_failed") return t("what.ended", { since });
  if (!f.records) return t("what.nothing", { since });
  return t("what.records", { lane: t("lane." + f.lane), records: number(f.records), issuers: f.issuers, age: seconds(age), since });
}

function figures({ rates, log, subscriptions, platforms }) {
  const p99 = (lane) => rates.latency[lane]?.applied_ms_p99 ?? null;
  const latency = (lane) => (p99(lane) === null ? "–" : latency_of(p99(lane)));
  const figure = (label, value) => h("div", null, h("dt", null, label), h("dd", null, value));
  return h("dl", { class: "figures" },
    figure(t("figure.urgent"), number(rates.accepted[0])),
    figure(t("figure.bulk"), number(rates.accepted[1])),
    figure(t("figure.delivered"), number(rates.delivered)),
    figure(t("figure.latency", { lane: t("lane.urgent") }), latency(0)),
    figure(t("figure.latency", { lane: t("lane.bulk") }), latency(1)),
    figure(t("figure.connected"), `${subscriptions.filter((s) => s.connected).length} / ${subscriptions.length}`),
    figure(t("figure.producers"), `${platforms.filter((p) => p.producers).length} / ${platforms.length}`),
    figure(t("figure.log"), bytes(log.bytes)));
}

export const RANK = { critical: 3, warning: 2, note: 1, good: 0 };

function platforms(picture) {
  const worst = (p) => Math.max(p.lag[0].seconds, p.lag[1].seconds);
  const sorted = [...picture.platforms].sort((a, b) => RANK[b.severity] - RANK[a.severity] || worst(b) - worst(a) || a.code - b.code);
  const lag = (lane) => (lane.records ? `${seconds(lane.seconds)} (${number(lane.records)})` : "0");
  return table(t("platforms.caption"), [
    [t("column.platform")], [t("column.state")], [t("column.lag", { lane: t("lane.urgent") }), "n"],
    [t("column.lag", { lane: t("lane.bulk") }), "n"], [t("column.subscriptions"), "n"], [t("column.producers"), "n"],
    [t("column.accepted"), "n"], [t("column.refused"), "n"], [t("column.letters"), "n"],
  ], sorted.map((p) => [
    h("a", { href: `#/platform/${p.code}` }, `${name(p.code)} ${p.code}`), tag(p.severity), lag(p.lag[0]), lag(p.lag[1]),
    `${p.subscriptions_connected} / ${p.subscriptions}`, number(p.producers), number(p.accepted), number(p.refused), p.dead_letters === null ? "–" : number(p.dead_letters),
  ]));
}
