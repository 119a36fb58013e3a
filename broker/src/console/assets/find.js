// Finding an entity, one of its deltas, or what is in a record; and a delta's way, hop by hop.

import { h, svg, table } from "./dom.js";
import { latency, number, time } from "./format.js";
import * as live from "./live.js";
import { current, either, t } from "./words.js";

const name = (code) => live.platform(code, current());

function form(value) {
  const go = async (event) => {
    event.preventDefault();
    const input = event.target.elements.sought;
    const text = input.value.trim();
    if (!text) return;
    if (/^[0-9a-fA-F]{32}$/.test(text)) {
      location.hash = `#/entity/${text.toLowerCase()}`;
      return;
    }
    // As in the links to records. No area has such a name.
    const place = text.match(/^(\d{6})\/(urgent|bulk)\/(\d+)\/(\d+)$/i);
    if (place) {
      location.hash = `#/record/${place.slice(1).join("/").toLowerCase()}`;
      return;
    }
    try {
      const path = text.split("/").map(encodeURIComponent).join("/");
      const found = await live.get(`area/${path}`);
      location.hash = `#/entity/${found.entity}`;
    } catch (error) {
      input.setCustomValidity(either(error.message, error.chinese));
      input.reportValidity();
      input.addEventListener("input", () => input.setCustomValidity(""), { once: true });
    }
  };
  return h("form", { onsubmit: go, role: "search", "data-key": "find" },
    h("label", { for: "sought" }, t("find.label")),
    h("p", null, h("input", { id: "sought", name: "sought", class: "mono", autocomplete: "off", spellcheck: "false", value: value ?? "" }), " ",
      h("button", { type: "submit" }, t("find.go"))),
    h("p", { class: "soft" }, t("find.help")));
}

export function find() {
  return { draw: () => [h("h1", null, t("page.find")), form()] };
}

function value(delta) {
  const word = delta.value.word ? t("value." + delta.value.word) : "";
  return [word, delta.value.text].filter(Boolean).join(" ") || "–";
}

function who(provenance) {
  return provenance ? `${provenance.authority} · ${provenance.rule_id} v${provenance.rule_version} · ${provenance.reason}` : "–";
}

const way = (entity, issuer, kind, revision) => `#/trace/${entity}/${issuer}/${kind}/${revision}`;

export function entity(id) {
  let found = null;
  return {
    every: true,
    async load() {
      found = await live.get(`entity/${encodeURIComponent(id)}`);
    },
    draw() {
      const box = [h("h1", null, t("page.entity")), form(id)];
      if (!found) return [...box, h("p", null, t("wait"))];
      if (!found.registers.length) return [...box, h("p", { class: "banner note" }, t("entity.nothing"))];
      const { explain } = found;
      return [...box,
        explain.contenders.length ? h("p", { class: "banner note" }, t("entity.colour", { colour: explain.colour ? t("value." + explain.colour) : "–", why: either(explain.decided_by, explain.decided_by_zh) })) : null,
        table(t("entity.registers"), [
          [t("column.issuer")], [t("column.kind")], [t("column.value")], [t("column.revision"), "n"], [t("column.committed")], [t("column.who")], [t("column.way")],
        ], found.registers.map((r) => [
          name(r.issuer), t("kind." + r.kind), value(r.delta) + (r.expired ? ` (${t("entity.expired")})` : ""), r.delta.revision, time(r.delta.committed_at_us), who(r.delta.provenance),
          h("a", { href: way(found.entity, r.issuer, r.kind, r.delta.revision) }, t("entity.trace", { issuer: name(r.issuer), kind: t("kind." + r.kind) })),
        ])),
      ];
    },
  };
}

const ORDER = { TRACE_STATE_WAITING: 0, TRACE_STATE_SENT: 1, TRACE_STATE_APPLIED: 2, TRACE_STATE_BEFORE_START: 3, TRACE_STATE_NOT_SUBSCRIBED: 4 };
const LEVEL = { TRACE_STATE_WAITING: "warning", TRACE_STATE_SENT: "warning", TRACE_STATE_APPLIED: "good" };

export function trace(id, issuer, kind, revision) {
  let found = null;
  return {
    every: true,
    async load() {
      found = await live.get(`trace/${[id, issuer, kind, revision].map(encodeURIComponent).join("/")}`);
    },
    draw() {
      const box = [h("h1", null, t("page.trace"))];
      if (!found) return [...box, h("p", null, t("wait"))];
      const { delta } = found;
      const after = (us) => (us ? (us - found.committed_at_us) / 1000 : null);
      const ms = (us) => (us ? latency(after(us)) : "–");
      const when = (us) => (us ? t("trace.when", { at: time(us), after: ms(us) }) : t("trace.unknown"));
      const hops = [...found.hops].sort((a, b) => ORDER[a.state] - ORDER[b.state] || b.applied_at_us - a.applied_at_us || a.platform - b.platform);
      const longest = Math.max(...hops.map((hop) => after(hop.applied_at_us) ?? 0), 1);
      const done = hops.filter((hop) => hop.state === "TRACE_STATE_APPLIED").length;
      const wanted = hops.filter((hop) => hop.state in LEVEL).length;
      return [...box,
        h("p", null, t("trace.what", { issuer: name(Number(issuer)), kind: t("kind." + kind), value: value(delta), revision: delta.revision }), " ",
          h("a", { href: `#/entity/${delta.entity}`, class: "mono" }, delta.entity)),
        h("p", { class: "soft" }, who(delta.provenance)),
        found.refused ? h("p", { class: "banner warning" }, t("trace.refused")) : found.superseded ? h("p", { class: "banner note" }, t("trace.superseded")) : null,
        h("p", { class: `banner ${done === wanted ? "good" : "warning"}` }, t("trace.done", { done, wanted })),
        h("ol", { class: "hops" },
          h("li", null, t("trace.committed", { at: time(found.committed_at_us) })),
          h("li", null, t("trace.arrived", { when: when(found.arrived_at_us) })),
          h("li", null, t("trace.durable", { at: time(found.durable_at_us), after: ms(found.durable_at_us), offset: found.offset, lane: t("lane." + found.lane) })),
          found.refused ? null : h("li", null, t("trace.applied", { when: when(found.applied_at_us) })),
          found.refused ? null : h("li", null, t("trace.then"))),
        table(t("trace.hops"), [
          [t("column.platform")], [t("column.state")], [t("column.sent"), "n"], [t("column.applied"), "n"], [t("trace.bar")],
        ], hops.map((hop) => [
          `${name(hop.platform)} ${hop.subscription}`,
          h("span", { class: `tag ${LEVEL[hop.state] ?? "note"}` }, t("hop." + hop.state)), ms(hop.sent_at_us), ms(hop.applied_at_us),
          bar(after(hop.applied_at_us), longest),
        ])),
      ];
    },
  };
}

function bar(value, longest) {
  const share = value === null ? 0 : Math.max(value / longest, 0.01);
  return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: value !== null && value > 1000 ? "late" : null, width: (share * 100).toFixed(1), height: 10 }));
}

export function record(issuer, lane, shard, offset) {
  let found = null;
  return {
    async load() {
      found = await live.get(`record/${[issuer, lane, shard, offset].map(encodeURIComponent).join("/")}`);
    },
    draw() {
      const box = [h("h1", null, t("page.record"))];
      if (!found) return [...box, h("p", null, t("wait"))];
      return [...box,
        h("p", null, t("record.what", { issuer: name(found.issuer), lane: t("lane." + found.lane), offset: found.offset, at: time(found.durable_at_us), n: number(found.deltas_in_all), producer: found.producer })),
        found.deltas_in_all > found.deltas.length ? h("p", { class: "soft" }, t("record.some", { n: found.deltas.length })) : null,
        table(t("record.deltas"), [
          [t("column.entity"), "mono"], [t("column.kind")], [t("column.value")], [t("column.revision"), "n"], [t("column.committed")], [t("column.who")],
        ], found.deltas.map((d) => [
          h("a", { href: way(d.entity, found.issuer, d.kind, d.revision) }, d.entity), t("kind." + d.kind), value(d), d.revision, time(d.committed_at_us), who(d.provenance),
        ])),
      ];
    },
  };
}
