// Dead letters that connectors keep, what the broker refused, to whom and why; and the last warnings and errors of its log.

import { h, prose, table } from "./dom.js";
import { bytes, number, time } from "./format.js";
import * as live from "./live.js";
import { RANK, tag } from "./overview.js";
import { current, either, t } from "./words.js";

export function refused() {
  let rows = null;
  let connectors = null;
  let errors = [];
  return {
    every: true,
    async load() {
      [rows, connectors, errors] = await Promise.all([live.get("refused"), live.get("connectors"), live.get("errors")]);
    },
    draw() {
      return [
        h("h1", null, t("page.refused")),
        h("p", null, prose(t("letters.about"))),
        connectors === null ? h("p", null, t("wait")) : letters(connectors, true),
        h("h2", null, t("refused.title")),
        h("p", null, t("refused.about")),
        rows === null ? h("p", null, t("wait")) : rows.length ? refusals(rows, true) : h("p", { class: "banner good" }, t("refused.none")),
        h("h2", null, t("errors.title")),
        errors.length ? table(t("errors.title"), [[t("column.when")], [t("column.level")], [t("column.times"), "n"], [t("column.said"), "mono"]],
          errors.map((e) => [time(e.at_us), t("level." + e.level), number(e.times), `${e.target}: ${e.text}${e.trace_id ? ` trace_id=${e.trace_id}` : ""}`]), { titled: true }) : h("p", null, t("errors.none")),
      ];
    },
  };
}

// Also on the page of a platform.
export function letters(connectors, named) {
  if (!connectors.length) return h("p", null, named ? t("letters.nobody") : t("letters.none"));
  const sorted = [...connectors].sort((a, b) => RANK[b.severity] - RANK[a.severity] || b.dead_letters - a.dead_letters);
  const state = (c) => {
    const word = t("connector." + c.state);
    return tag(c.severity, c.silent ? t("letters.silent", { state: word }) : word);
  };
  const kept = (c) => (c.dead_letters ? `${number(c.dead_letters)} (${bytes(c.dead_letters_bytes)})` : "0");
  const added = (c) => [...c.dead_letters_added].sort((a, b) => b.rows - a.rows).map((a) => `${a.reason} ${number(a.rows)}`).join(", ");
  const who = named ? [[t("column.platform")]] : [];
  return table(t("letters.caption"), [
    ...who, [t("column.connector")], [t("column.role")], [t("column.state")], [t("column.since")], [t("column.letters"), "n"], [t("column.added"), "mono"], [t("column.heard")],
  ], sorted.map((c) => [
    ...(named ? [h("a", { href: `#/platform/${c.platform}` }, live.platform(c.platform, current()))] : []),
    c.connector, t("connector." + c.role), state(c), time(c.since_us), kept(c), added(c), time(c.said_at_us),
  ]));
}

// Also on the page of a platform.
export function refusals(rows, named) {
  const sorted = [...rows].sort((a, b) => b.count - a.count);
  const columns = [[t("column.reason"), "mono"], [t("column.count"), "n"], [t("column.meaning")], [t("column.retry")]];
  const cells = (row) => [row.reason, number(row.count), either(row.text, row.text_zh), row.retryable ? t("retry.yes") : t("retry.no")];
  const link = (row) => (row.platform ? h("a", { href: `#/platform/${row.platform}` }, live.platform(row.platform, current())) : t("refused.nobody"));
  return named
    ? table(t("refused.caption"), [[t("column.platform")], ...columns], sorted.map((row) => [link(row), ...cells(row)]))
    : table(t("refused.caption"), columns, sorted.map(cells));
}
