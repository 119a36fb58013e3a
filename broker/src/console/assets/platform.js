// One platform: its subscriptions, what it has not applied and of whom, and what went wrong last.

import { h, table } from "./dom.js";
import { number, seconds, time } from "./format.js";
import * as live from "./live.js";
import { finding, tag } from "./overview.js";
import { letters, refusals } from "./refused.js";
import { current, either, t } from "./words.js";

export function platform(text) {
  const code = Number(text);
  let more = null;
  return {
    every: true,
    async load() {
      more = await live.get(`platform/${code}`);
    },
    draw({ picture }) {
      const p = picture?.platforms.find((known) => known.code === code);
      if (!picture) return h("p", null, t("wait"));
      if (!p) return h("p", null, t("platform.unknown", { code: text }));
      const findings = picture.findings.filter((f) => f.platform === code && f.why !== "no_producer");
      return [
        h("h1", null, `${either(p.name, p.name_zh)} `, h("span", { class: "soft" }, String(code))),
        findings.length ? h("ul", { class: "findings" }, findings.map(finding)) : h("p", { class: "banner good" }, t("platform.good")),
        h("h2", null, t("platform.subscriptions")),
        subscriptions(picture.subscriptions.filter((s) => s.platform === code)),
        h("h2", null, t("platform.outstanding")),
        more ? outstanding(more.pairs) : h("p", null, t("wait")),
        h("h2", null, t("platform.publishes")),
        h("p", null, published(p)),
        more?.refused.length ? refusals(more.refused, false) : null,
        h("h2", null, t("platform.connectors")),
        more ? letters(more.connectors, false) : h("p", null, t("wait")),
        h("h2", null, t("platform.errors")),
        more ? faults(more.last) : h("p", null, t("wait")),
      ];
    },
  };
}

function published(p) {
  const known = { producers: number(p.producers), accepted: number(p.accepted), refused: number(p.refused) };
  return p.last_record_at_us ? t("platform.published", { ...known, last: time(p.last_record_at_us) }) : t("platform.published_nothing", known);
}

// The last one of each direction.
function faults(last) {
  if (!last.length) return h("p", null, t("platform.no_errors"));
  return table(t("platform.errors"), [
    [t("column.when")], [t("column.side")], [t("column.how")], [t("column.reason"), "mono"], [t("column.meaning")],
  ], last.map((f) => [
    time(f.at_us), t("side." + f.side), t("fault." + (f.ended ? "ended" : "refused")), f.field ? `${f.reason} ${f.field}` : f.reason, either(f.text, f.text_zh),
  ]), { titled: true });
}

function subscriptions(own) {
  if (!own.length) return h("p", null, t("why.not_subscribed"));
  const lag = (lane) => (lane.records ? `${seconds(lane.seconds)} (${number(lane.records)})` : "0");
  return table(t("platform.subscriptions"), [
    [t("column.subscription")], [t("column.state")], [t("column.how")], [t("column.lag", { lane: t("lane.urgent") }), "n"],
    [t("column.lag", { lane: t("lane.bulk") }), "n"], [t("column.acknowledged")],
  ], own.map((s) => [s.subscription, tag(s.severity), t("state." + s.state), lag(s.lag[0]), lag(s.lag[1]), time(s.applied_at_us)]), { titled: true });
}

function outstanding(pairs) {
  const rows = pairs.flatMap((pair) => ["urgent", "bulk"].map((name, i) => ({ ...pair, name, one: pair.lag[i], severity: pair.severity[i] }))).filter((row) => row.one.records);
  rows.sort((a, b) => (a.name === b.name ? b.one.seconds - a.one.seconds : a.name === "urgent" ? -1 : 1));
  if (!rows.length) return h("p", null, t("platform.nothing"));
  // Whose it is, where there is more than one.
  const several = new Set(pairs.map((pair) => pair.subscription)).size > 1;
  return table(t("platform.outstanding"), [
    ...(several ? [[t("column.subscription")]] : []), [t("column.issuer")], [t("column.lane")], [t("column.state")], [t("column.age"), "n"], [t("column.records"), "n"], [t("column.oldest")],
  ], rows.map((row) => [
    ...(several ? [row.subscription] : []), live.platform(row.issuer, current()), t("lane." + row.name), tag(row.severity), seconds(row.one.seconds), number(row.one.records),
    h("a", { href: `#/record/${row.issuer}/${row.name}/${row.one.oldest_shard}/${row.one.oldest_offset}` }, `${row.one.oldest_offset} · ${time(row.one.oldest_at_us)}`),
  ]), { titled: true });
}
