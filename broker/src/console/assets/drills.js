// The reports of drills: what was broken on purpose, and what held.

import { h, prose, table } from "./dom.js";
import { bytes, time } from "./format.js";
import * as live from "./live.js";
import { t } from "./words.js";

export function drills() {
  let found = null;
  return {
    async load() {
      found = await live.get("drills");
    },
    draw() {
      const head = [h("h1", null, t("page.drills")), h("p", null, t("drills.about"))];
      if (!found) return [...head, h("p", null, t("wait"))];
      if (!found.configured) return [...head, h("p", { class: "banner note" }, prose(t("drills.configure")))];
      if (!found.reports.length) return [...head, h("p", { class: "banner note" }, prose(t("drills.none")))];
      return [...head, table(t("page.drills"), [[t("column.report")], [t("column.when")], [t("column.size"), "n"]],
        found.reports.map((r) => [h("a", { href: `api/drills/${encodeURIComponent(r.name)}`, target: "_blank", rel: "noopener" }, r.name), time(r.changed_at_us), bytes(r.bytes)]), { titled: true })];
    },
  };
}
