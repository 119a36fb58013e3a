// Numbers, times and names as a person says them.

import { current, t } from "./words.js";

export function number(value) {
  return new Intl.NumberFormat(current()).format(Math.round(value));
}

export function seconds(value) {
  if (value < 1) return t("unit.ms", { n: Math.round(value * 1000) });
  if (value < 120) return t("unit.s", { n: value < 10 ? value.toFixed(1) : Math.round(value) });
  if (value < 7200) return t("unit.min", { n: Math.round(value / 60) });
  if (value < 172800) return t("unit.h", { n: (value / 3600).toFixed(1) });
  return t("unit.d", { n: (value / 86400).toFixed(1) });
}

// For a cell of the matrix: at most four characters.
export function brief(value) {
  if (value < 1) return "<1s";
  if (value < 100) return `${Math.round(value)}s`;
  if (value < 5970) return `${Math.round(value / 60)}m`;
  if (value < 356400) return `${Math.round(value / 3600)}h`;
  return `${Math.min(999, Math.round(value / 86400))}d`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; value >= 1024 && i + 1 < units.length; i += 1) value /= 1024;
  return `${i === 0 ? Math.round(value) : value.toFixed(1)} ${units[i]}`;
}

// Always UTC, so that two operators see the same.
export function time(us) {
  if (!us) return t("unit.never");
  return `${new Date(us / 1000).toISOString().replace("T", " ").slice(0, 23)} UTC`;
}

export function clock(us) {
  return new Date(us / 1000).toISOString().slice(11, 19);
}

export function latency(ms) {
  if (ms >= 1000) return seconds(ms / 1000);
  return t("unit.ms", { n: ms < 10 ? ms.toFixed(1) : number(ms) });
}

const SIGNS = { critical: "■", warning: "▲", note: "●", good: "✓" };

export function sign(severity) {
  return SIGNS[severity];
}
