// What was refused, to whom and why; and the last warnings and errors of the broker's log.

import { h, prose, table } from "./dom.js";
import { number, time } from "./format.js";
import * as live from "./live.js";
import { current, either, t } from "./words.js";

export function refused() {
  let rows = null;
  let errors = [];
  return {
    every: true,
    async load() {
      [rows, errors] = await Promise.all([live.get("refused"), live.get("errors")]);
    },
    draw() {
      return [
        h("h1", null, t("page.refused")),
        h("p", null, prose(t("refused.about"))),
        rows === null ? h("p", null, t("wait")) : rows.length ? refusals(rows, true) : h("p", { class: "banner good" }, t("refused.none")),
        h("h2", null, t("errors.title")),
        errors.length ? table(t("errors.title"), [[t("column.when")], [t("column.level")], [t("column.times"), "n"], [t("column.said"), "mono"]],
          errors.map((e) => [time(e.at_us), t("level." + e.level), number(e.times), `${e.target}: ${e.text}${e.trace_id ? ` trace_id=${e.trace_id}` : ""}`]), { titled: true }) : h("p", null, t("errors.none")),
      ];
    },
  };
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
