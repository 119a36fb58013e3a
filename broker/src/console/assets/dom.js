// Makes elements, and brings what is shown up to date without losing focus, scrolling or what is open.

const SVG = "http://www.w3.org/2000/svg";

// h("td", {class: "n"}, "text", element, [elements], null). Text is always text, never markup.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A text in which `backquotes` stand around what is typed as it is.
export function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", null, part) : part));
}

// Makes `old` look like `fresh`, keeping the nodes that are alike. Listeners stay those of the old nodes: what
// they do must not depend on what was drawn.
export function patch(old, fresh) {
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, i) => {
    const same = before[i];
    if (!same) old.append(node);
    else if (!alike(same, node)) same.replaceWith(node);
    else if (same.nodeType === Node.TEXT_NODE) {
      if (same.data !== node.data) same.data = node.data;
    } else {
      attributes(same, node);
      // What draws itself takes what the fresh one was given.
      if (same.renew) same.renew(node);
      else patch(same, node);
    }
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.dataset?.key ?? "") === (b.dataset?.key ?? "");
}

function attributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    // What a reader opened stays open.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

// A table that can be scrolled by keyboard when it is too wide. `columns`: [text, class]; rows: lists of cells,
// each a text, a node, or {head: ..., class: ..., cell: ...}. On a narrow screen each row becomes a list. With
// `more.titled` a heading above says the caption already.
export function table(caption, columns, rows, more) {
  const label = (i) => columns[i][0];
  const cell = (value, i) => {
    const given = value !== null && typeof value === "object" && !(value instanceof Node) && !Array.isArray(value) ? value : { cell: value };
    const kind = [columns[i][1], given.class].filter(Boolean).join(" ") || null;
    const tag = i === 0 ? "th" : "td";
    return h(tag, { class: kind, scope: i === 0 ? "row" : null, "data-label": label(i) }, given.cell);
  };
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: more?.class ?? "stack" },
      h("caption", { class: more?.titled ? "sr" : null }, caption),
      h("thead", null, h("tr", null, columns.map(([text, kind]) => h("th", { scope: "col", class: kind ?? null }, text)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map(cell))))));
}
