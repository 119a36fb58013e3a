// Rates and latencies of the last minutes.

import { chart } from "./chart.js";
import { h } from "./dom.js";
import { latency } from "./format.js";
import * as live from "./live.js";
import { t } from "./words.js";

const POINTS_MAX = 600;

export function rates() {
  let points = [];
  return {
    async load() {
      points = await live.get("history");
    },
    draw({ picture }) {
      const last = picture?.rates;
      if (last?.at_us && points.length && last.at_us > points.at(-1).at_us) points = [...points, last].slice(-POINTS_MAX);
      const of = (read) => points.map((p) => [p.at_us, read(p)]);
      const lanes = (read) => [0, 1].map((i) => of((p) => (p.latency[i] ? read(p.latency[i]) : null)));
      const [urgent99, bulk99] = lanes((l) => l.applied_ms_p99);
      const [urgent50, bulk50] = lanes((l) => l.applied_ms_p50);
      const lane = (name) => t("lane." + name);
      return [
        h("h1", null, t("page.rates")),
        h("p", { class: "soft" }, t("rates.about")),
        points.length ? h("div", { class: "charts" },
          chart("latency", t("rates.latency"), t("unit.milliseconds"), [[`${lane("urgent")} p99`, urgent99], [`${lane("bulk")} p99`, bulk99], [`${lane("urgent")} p50`, urgent50], [`${lane("bulk")} p50`, bulk50]], latency),
          chart("accepted", t("rates.accepted"), t("unit.per_second"), [[lane("urgent"), of((p) => p.accepted[0])], [lane("bulk"), of((p) => p.accepted[1])]]),
          chart("delivered", t("rates.delivered"), t("unit.per_second"), [[t("rates.records"), of((p) => p.delivered)]]),
          chart("refused", t("rates.refused"), t("unit.per_second"), [[t("column.refused"), of((p) => p.refused)]])) : h("p", null, t("wait")),
      ];
    },
  };
}
