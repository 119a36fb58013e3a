// Every pair of platforms at a glance: rows receive, columns issue. Colour and text say the same.

import { h, table } from "./dom.js";
import { brief, number, seconds, sign } from "./format.js";
import * as live from "./live.js";
import { tag } from "./overview.js";
import { current, t } from "./words.js";

const LANES = ["urgent", "bulk"];
// As the broker judges: from when on lag is a warning, and critical.
const BOUNDS = [[3, 10], [30, 300]];
const WORST_MAX = 5;
const RANK = { critical: 2, warning: 1, good: 0 };
// What somebody chose, on whichever visit.
let chosen = null;
let lane = 0;

export function matrix() {
  let opened = null;
  return {
    draw({ picture }) {
      if (!picture) return h("p", null, t("wait"));
      // It opens with what is worst, and does not change the lane under the eyes of a reader.
      opened ??= lane_of_the_worst(picture);
      lane = chosen ?? opened;
      return [
        h("h1", null, t("page.matrix")),
        h("fieldset", { class: "switch" }, h("legend", { class: "sr" }, t("matrix.lane")), LANES.map((name, i) =>
          h("button", { type: "button", "aria-pressed": String(i === lane), onclick: () => choose(i) }, t("lane." + name), mark(worst_of(picture, i))))),
        // First: on a phone, whoever is worst may stand beyond the edge of the grid.
        h("h2", null, t("matrix.worst")),
        worst(picture),
        legend(),
        grid(picture),
      ];
    },
  };
}

function choose(i) {
  chosen = i;
  live.tell();
}

function severity(value, of = lane) {
  const [warning, critical] = BOUNDS[of];
  return value >= critical ? "critical" : value >= warning ? "warning" : "good";
}

function worst_of(picture, of) {
  return severity(Math.max(0, ...picture.matrix.cells[of].map(([, , , age]) => age)), of);
}

// Urgent, also when both are equally bad.
function lane_of_the_worst(picture) {
  return RANK[worst_of(picture, 1)] > RANK[worst_of(picture, 0)] ? 1 : 0;
}

// Of the lane that is not shown, too.
function mark(level) {
  return level === "good" ? null : [h("span", { "aria-hidden": "true" }, ` ${sign(level)}`), h("span", { class: "sr" }, ` ${t("severity." + level)}`)];
}

function legend() {
  const [warning, critical] = BOUNDS[lane];
  return h("ul", { class: "legend" },
    h("li", null, h("span", { class: "tag critical" }, `${sign("critical")} ≥ ${critical} s`)),
    h("li", null, h("span", { class: "tag warning" }, `${sign("warning")} ≥ ${warning} s`)),
    h("li", null, "<1s … ", t("matrix.moving")),
    h("li", null, "· ", t("matrix.nothing")),
    h("li", null, "– ", t("matrix.none")));
}

function grid(picture) {
  const names = picture.platforms.map((p) => (current() === "zh" ? p.name_zh : p.name));
  const seen = new Map(picture.matrix.cells[lane].map(([row, column, records, age]) => [`${row} ${column}`, [records, age]]));
  const cell = (row, column) => {
    if (row === column) return h("td", { class: "none" }, h("span", { "aria-hidden": "true" }, "\\"), h("span", { class: "sr" }, t("matrix.own")));
    if (picture.matrix.grid[lane][row][column] === "-") return h("td", { class: "none" }, h("span", { "aria-hidden": "true" }, "–"), h("span", { class: "sr" }, t("matrix.none")));
    const known = seen.get(`${row} ${column}`);
    if (!known) return h("td", null, h("span", { "aria-hidden": "true" }, "·"), h("span", { class: "sr" }, t("matrix.nothing")));
    const level = severity(known[1]);
    return h("td", { class: level === "good" ? null : level }, level === "good" ? "" : h("span", { "aria-hidden": "true" }, sign(level)), brief(known[1]),
      level === "good" ? null : h("span", { class: "sr" }, ` ${t("severity." + level)}`));
  };
  // Not a caption: that is as wide as the table, and on a phone its end would be out of sight.
  return [h("p", { class: "soft", id: "grid" }, t("matrix.caption")), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "grid" },
    h("table", { class: "matrix", "aria-labelledby": "grid" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, t("matrix.corner")),
        picture.platforms.map((p, i) => h("th", { scope: "col" }, h("a", { href: `#/platform/${p.code}` }, names[i]))))),
      h("tbody", null, picture.platforms.map((p, row) => h("tr", null,
        h("th", { scope: "row" }, h("a", { href: `#/platform/${p.code}` }, names[row])),
        picture.platforms.map((_, column) => cell(row, column)))))))];
}

function worst(picture) {
  const cells = [...picture.matrix.cells[lane]].sort((a, b) => b[3] - a[3]).slice(0, WORST_MAX);
  if (!cells.length) return h("p", null, t("matrix.clear"));
  const link = (i) => {
    const code = picture.platforms[i].code;
    return h("a", { href: `#/platform/${code}` }, live.platform(code, current()));
  };
  return table(t("matrix.worst_caption"), [
    [t("column.receiver")], [t("column.issuer")], [t("column.state")], [t("column.age"), "n"], [t("column.records"), "n"],
  ], cells.map(([row, column, records, age]) => [link(row), link(column), tag(severity(age)), seconds(age), number(records)]));
}
