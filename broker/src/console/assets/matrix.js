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
let lane = 0;

export function matrix() {
  return {
    draw({ picture }) {
      if (!picture) return h("p", null, t("wait"));
      return [
        h("h1", null, t("page.matrix")),
        h("fieldset", { class: "switch" }, h("legend", { class: "sr" }, t("matrix.lane")), LANES.map((name, i) =>
          h("button", { type: "button", "aria-pressed": String(i === lane), onclick: () => choose(i) }, t("lane." + name)))),
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
  lane = i;
  live.tell();
}

function severity(value) {
  const [warning, critical] = BOUNDS[lane];
  return value >= critical ? "critical" : value >= warning ? "warning" : "good";
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
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("matrix.caption") },
    h("table", { class: "matrix" },
      h("caption", null, t("matrix.caption")),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, t("matrix.corner")),
        picture.platforms.map((p, i) => h("th", { scope: "col" }, h("a", { href: `#/platform/${p.code}` }, names[i]))))),
      h("tbody", null, picture.platforms.map((p, row) => h("tr", null,
        h("th", { scope: "row" }, h("a", { href: `#/platform/${p.code}` }, names[row])),
        picture.platforms.map((_, column) => cell(row, column)))))));
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
